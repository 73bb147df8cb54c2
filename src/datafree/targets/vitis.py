"""AMD Vitis AI and Ryzen AI, XINT8: power-of-two scales."""

from datafree.targets.base import Target

TARGET = Target(
    what="AMD Ryzen AI and Vitis accelerators, XINT8",
    source="AMD Quark documentation, XINT8",
    weight_widths=frozenset((8,)),
    activation_widths=frozenset((8,)),
    symmetric_activations=True,
    usual=(True, True),
    granularities=("tensor",),
    signed_activations=True,
    power_of_two=True,
    operators=frozenset(("conv", "linear", "add", "mul", "cat", "avg_pool", "leaky_relu")),
    behind=frozenset(("conv", "linear", "add", "mul", "cat", "avg_pool")),
    same_grid=frozenset(("cat",)),
)
