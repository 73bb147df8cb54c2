"""Adaptive rounding, layer by layer (algorithms B.5; Nagel et al., ICML 2020)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from datafree.reconstruction._schedule import Stage
from datafree.reconstruction.base import Reconstructor


class AdaRound(Reconstructor):
    """Learn to round every layer's weights so that its output stays what the float layer gives.

    ``min_V |f(W x) - f(W'(V) x')|^2 + rounding_weight sum (1 - |2 h(V) - 1|^beta)``, in which
    ``W'(V) = s (clip(floor(W / s) + h(V) + z, qmin, qmax) - z)`` and
    ``h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)``, over the rounding variables V, with the float
    network's inputs x, the student's own x' and the activation function f. V starts where
    ``W' = W``; in the end ``V >= 0`` rounds up. Activation quantizers keep their calibrated ranges.
    """

    citation: ClassVar[str] = (
        "Nagel et al. (2020), Up or Down? Adaptive Rounding for Post-Training Quantization, ICML"
    )

    iterations: int = Field(default=10_000, ge=1)
    unit: Literal["block", "layer"] = "layer"

    def stages(self) -> tuple[Stage, ...]:
        """One pass: weights, with quantized activations."""
        return (Stage(self.iterations, self.rounding_lr),)
