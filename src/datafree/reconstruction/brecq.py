"""Block reconstruction (algorithms B.6; Li et al., ICLR 2021)."""

from __future__ import annotations

from pydantic import Field

from datafree.reconstruction._schedule import Stage
from datafree.reconstruction.base import Reconstructor


class BRECQ(Reconstructor):
    """Learn the rounding of all weights of a block together, then its activation steps.

    Attributes:
        activation_iterations: steps per block of the second pass.
        activation_lr: rate of the activation steps, falls to 0 along a cosine.
        steps_below: activation quantizers of at least so many bits keep their calibrated step; 9
            learns all, as the paper does. 8 spares the classifier's input under policy `brecq`: on
            images with nearly equal pooled features (`zeroq`) a learned step would flatten them.
        activation_power: exponent of the second pass's error.
        fisher: weigh errors by the squared gradient of the KL divergence at the network's output
            (the paper's objective; its released default leaves them equal). Takes one pass through
            the rest of the network per block; layers inside blocks of more than `max_layers` keep
            equal weights.
    """

    activation_iterations: int = Field(default=5000, ge=1)
    activation_lr: float = Field(default=4e-4, gt=0)
    steps_below: int = Field(default=9, ge=2, le=9)
    activation_power: float = Field(default=2.4, gt=0)
    fisher: bool = False

    def stages(self) -> tuple[Stage, ...]:
        """Weights under float activations; then activation steps under fixed weights."""
        weights = Stage(self.iterations, self.rounding_lr, activations=False, fisher=self.fisher)
        steps = Stage(
            self.activation_iterations,
            rounding_lr=0.0,
            activation_lr=self.activation_lr,
            steps_below=self.steps_below,
            power=self.activation_power,
        )
        return weights, steps
