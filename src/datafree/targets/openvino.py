"""OpenVINO on a CPU: low-precision transformations of FakeQuantize patterns."""

from datafree.targets.base import Target

TARGET = Target(
    what="OpenVINO on Intel processors",
    source="OpenVINO 2026.4, measured pattern by pattern on its CPU plugin",
    # Without their zero points 2 and 3 bits fit int4, 5 and 6 bits int8 without saturating.
    affine_weights=frozenset((2, 3, 5, 6)),
    even_zero_points=True,
    operators=frozenset(
        ("conv", "linear", "add", "mul", "cat", "avg_pool", "sigmoid", "silu", "leaky_relu")
    ),
    behind=frozenset(("cat", "avg_pool")),
    # It drops the rounding of a convolution whose sum it computes in one kernel.
    absorbs_add=True,
)
