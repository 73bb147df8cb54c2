"""onnxruntime on a CPU: QLinear kernels between QuantizeLinear and DequantizeLinear."""

from datafree.targets.base import Target

TARGET = Target(
    what="onnxruntime on x86 and ARM processors",
    source="onnxruntime 1.32, measured pattern by pattern on its CPU provider",
    # Without their zero points 2 and 3 bits fit int4, 5 and 6 bits int8 without saturating.
    affine_weights=frozenset((2, 3, 5, 6)),
    even_zero_points=True,
    exact=True,
    operators=frozenset(
        ("conv", "linear", "add", "mul", "cat", "avg_pool", "sigmoid", "silu", "leaky_relu")
    ),
    # A convolution is fused only between two pairs; a linear layer also with float output.
    behind=frozenset(("conv", "add", "mul", "cat", "avg_pool", "sigmoid", "leaky_relu")),
)
