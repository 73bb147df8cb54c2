"""LiteRT (TensorFlow Lite): the int8 quantization specification."""

from datafree.targets.base import Target

TARGET = Target(
    what="LiteRT on phones and microcontrollers",
    source="TensorFlow Lite 8-bit quantization specification",
    weight_widths=frozenset((8,)),
    activation_widths=frozenset((8,)),
    narrow_weights=True,
    ratios=(2.0**-10 * 1.01, 2.0**8 / 1.01),  # its kernels on processors are XNNPACK's
    fixed={
        "sigmoid": (1 / 256, 0),
        "softmax": (1 / 256, 0),
        "tanh": (1 / 128, 128),
        "log_softmax": (16 / 256, 255),
    },
    suffix=".tflite",
    operators=frozenset(("conv", "linear", "add", "mul", "cat", "avg_pool", "sigmoid")),
    behind=frozenset(("conv", "linear", "add", "mul", "cat", "avg_pool", "sigmoid")),
    same_grid=frozenset(("cat", "avg_pool")),
)
