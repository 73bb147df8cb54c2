"""LiteRT (TensorFlow Lite): the int8 quantization specification."""

from datafree.targets.base import Target

TARGET = Target(
    what="LiteRT on phones and microcontrollers",
    source="TensorFlow Lite 8-bit quantization specification",
    weight_widths=frozenset((8,)),
    activation_widths=frozenset((8,)),
    narrow_weights=True,
    operators=frozenset(("conv", "linear", "add", "mul", "cat", "avg_pool", "sigmoid")),
    behind=frozenset(("conv", "linear", "add", "mul", "cat", "avg_pool", "sigmoid")),
    same_grid=frozenset(("cat", "avg_pool")),
)
