"""Block reconstruction (algorithms B.6; Li et al., ICLR 2021)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from datafree.reconstruction._schedule import Stage
from datafree.reconstruction.base import Reconstructor


class BRECQ(Reconstructor):
    """Learn the rounding of all weights of a block together, then its activation steps.

    First ``min_V sum_i F_i (B(x)_i - B'(x'; V)_i)^2``, under float activations, with the variables
    V and the penalty of `adaround`: B is the float block and B' the student's, on the inputs each
    has in its own network; ``F_i`` is 1, or with `fisher` the squared gradient of the KL divergence
    at the network's output, scaled to mean 1. Then
    ``min_s sum_i |B(x)_i - B'(x'; s)_i|^activation_power`` over the step sizes s of the
    activations, under fixed weights.
    """

    citation: ClassVar[str] = (
        "Li et al. (2021), BRECQ: Pushing the Limit of Post-Training Quantization by Block"
        " Reconstruction, ICLR"
    )

    activation_iterations: int | None = Field(default=None, ge=1)
    """Steps per block of the second pass, which learns the activation steps; None is a quarter of
    `iterations`, as was published: 5,000 of 20,000."""
    activation_lr: float = Field(default=4e-4, gt=0)
    """Adam's rate for the activation steps; falls to 0 along a cosine."""
    steps_below: int = Field(default=9, ge=2, le=9)
    """Bits from which on activation quantizers keep their calibrated step; 9 learns all, as the
    paper does. 8 spares the classifier's input under policy `brecq`: on images with nearly equal
    pooled features (`zeroq`) a learned step would flatten them."""
    activation_power: float = Field(default=2.4, gt=0)
    """Exponent of the second pass's error."""
    fisher: bool = False
    """Weigh the first pass's errors by the squared gradient of the KL divergence at the network's
    output (the paper's objective; its released default leaves them equal). Takes one pass through
    the rest of the network per block; layers inside blocks of more than `max_layers` keep equal
    weights."""

    def stages(self) -> tuple[Stage, ...]:
        """Weights under float activations; then activation steps under fixed weights."""
        weights = Stage(self.iterations, self.rounding_lr, activations=False, fisher=self.fisher)
        steps = Stage(
            self.activation_iterations or max(self.iterations // 4, 1),
            rounding_lr=0.0,
            activation_lr=self.activation_lr,
            steps_below=self.steps_below,
            power=self.activation_power,
        )
        return weights, steps
