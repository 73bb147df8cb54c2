"""Qualcomm HTP through QNN."""

from datafree.targets.base import Target

TARGET = Target(
    what="Qualcomm Hexagon through QNN",
    source="onnxruntime's QNN configuration; Qualcomm HTP revision history",
    weight_widths=frozenset((8,)),
    activation_widths=frozenset((8,)),
    operators=frozenset(
        ("conv", "linear", "add", "mul", "cat", "avg_pool", "sigmoid", "silu", "leaky_relu")
    ),
    behind=frozenset(("conv", "linear", "add", "mul", "cat", "avg_pool", "sigmoid")),
)
