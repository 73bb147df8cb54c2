"""ExecuTorch with the XNNPACK delegate."""

from datafree.targets.base import Target

TARGET = Target(
    what="ExecuTorch with XNNPACK, on phones",
    source="ExecuTorch 1.5, backends/xnnpack/partition/config, run",
    weight_widths=frozenset((8,)),
    activation_widths=frozenset((8,)),
    integer_bias=False,
    operators=frozenset(("conv", "linear", "add", "mul", "cat", "avg_pool")),
    behind=frozenset(("conv", "linear", "add", "mul", "cat", "avg_pool")),
    same_grid=frozenset(("cat",)),
)
