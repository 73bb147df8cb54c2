"""TensorRT with explicit quantization."""

from datafree.targets.base import Target

TARGET = Target(
    what="TensorRT on NVIDIA GPUs, explicit quantization",
    source='TensorRT documentation, "Explicit Quantization" and "Working with Quantized Types"',
    symmetric_activations=True,
    usual=(True, True),
    weight_widths=frozenset((8,)),
    activation_widths=frozenset((8, 32)),
    narrow_weights=True,
    signed_activations=True,
    integer_bias=False,
    operators=frozenset(("conv", "linear", "add", "avg_pool")),
    absorbs_add=True,
)
