"""ExecuTorch with the XNNPACK delegate."""

from datafree.targets.base import Target

TARGET = Target(
    what="ExecuTorch with XNNPACK, on phones",
    source="ExecuTorch 1.5, backends/xnnpack/partition/config, run",
    weight_widths=frozenset((8,)),
    activation_widths=frozenset((8,)),
    narrow_weights=True,  # as XNNPACK's own quantizer has them
    integer_bias=False,
    ratios=(2.0**-10 * 1.01, 2.0**8 / 1.01),  # beyond, XNNPACK refuses to create an operator
    suffix=".pte",
    operators=frozenset(("conv", "linear", "add", "mul", "cat", "avg_pool")),
    behind=frozenset(("conv", "linear", "add", "mul", "cat", "avg_pool")),
    same_grid=frozenset(("cat",)),
)
