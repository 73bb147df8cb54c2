"""Qualcomm HTP through QNN."""

from datafree.targets.base import Target

TARGET = Target(
    what="Qualcomm Hexagon through QNN",
    source="onnxruntime's QNN configuration; Qualcomm HTP revision history",
    weight_widths=frozenset((8,)),
    activation_widths=frozenset((8,)),
    smallest_range=2e-4,  # it asks for 1e-4, in a rounding of its own
    operators=frozenset(
        ("conv", "linear", "add", "mul", "cat", "avg_pool", "sigmoid", "silu", "leaky_relu")
    ),
    behind=frozenset(("conv", "linear", "add", "mul", "cat", "avg_pool", "sigmoid", "leaky_relu")),
)
