"""Randomly dropping quantization (algorithms B.7; Wei et al., ICLR 2022)."""

from __future__ import annotations

from pydantic import Field

from datafree.reconstruction._schedule import Stage
from datafree.reconstruction.base import Reconstructor


class QDrop(Reconstructor):
    """Learn rounding and activation steps together, with part of the activations left in float.

    Every element of every activation, and of the block's input, is the float one with probability
    `drop` while learning.

    Attributes:
        activation_lr: rate of the activation steps, falls to 0 along a cosine.
        steps_below: activation quantizers of at least so many bits keep their calibrated step; 9
            learns all, as the paper does. 8 spares the classifier's input under policy `brecq`: on
            images with nearly equal pooled features (`zeroq`) a learned step would flatten them.
        drop: probability to stay float.
    """

    activation_lr: float = Field(default=4e-5, ge=0)
    steps_below: int = Field(default=9, ge=2, le=9)
    drop: float = Field(default=0.5, ge=0, lt=1)

    def stages(self) -> tuple[Stage, ...]:
        """One pass: weights and activation steps."""
        stage = Stage(
            self.iterations,
            self.rounding_lr,
            activation_lr=self.activation_lr,
            steps_below=self.steps_below,
            drop=self.drop,
        )
        return (stage,)
