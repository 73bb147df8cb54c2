"""Adaptive rounding, layer by layer (algorithms B.5; Nagel et al., ICML 2020)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from datafree.reconstruction._schedule import Stage
from datafree.reconstruction.base import Reconstructor


class AdaRound(Reconstructor):
    """Learn to round every layer's weights so that its output stays what the float layer gives.

    The student's own inputs, the float network's targets, through the activation function.
    Activation quantizers keep their calibrated ranges.
    """

    iterations: int = Field(default=10_000, ge=1)
    unit: Literal["block", "layer"] = "layer"

    def stages(self) -> tuple[Stage, ...]:
        """One pass: weights, with quantized activations."""
        return (Stage(self.iterations, self.rounding_lr),)
