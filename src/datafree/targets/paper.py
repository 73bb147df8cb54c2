"""No runtime: numbers and places as the papers have them."""

from datafree.targets.base import Target

TARGET = Target(
    what="no runtime: the numbers and places of the papers, for comparisons with them",
    source="ZeroQ (Cai, CVPR 2020), DSG (Zhang, CVPR 2021), BRECQ (Li, ICLR 2021)",
    placements=("every_input", "after_activation", "every_edge"),
    symmetric_weights=None,
    usual=(False, False),
    integer_bias=False,
    operators=frozenset(("conv", "linear", "add", "mul", "cat", "avg_pool", "sigmoid", "silu")),
    behind=frozenset(("conv",)),
)
