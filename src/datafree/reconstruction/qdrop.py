"""Randomly dropping quantization (algorithms B.7; Wei et al., ICLR 2022)."""

from __future__ import annotations

from pydantic import Field

from datafree.reconstruction._learn import Stage
from datafree.reconstruction.base import Reconstructor


class QDrop(Reconstructor):
    """Learn rounding and activation steps together, with part of the activations left in float.

    Every element of every activation, and of the block's input, is the float one with probability
    `drop` while learning.

    Attributes:
        activation_lr: rate of the activation steps, falls to 0 along a cosine.
        drop: probability to stay float.
    """

    activation_lr: float = Field(default=4e-5, ge=0)
    drop: float = Field(default=0.5, ge=0, lt=1)

    def stages(self) -> tuple[Stage, ...]:
        """One pass: weights and activation steps."""
        stage = Stage(
            self.iterations, self.rounding_lr, activation_lr=self.activation_lr, drop=self.drop
        )
        return (stage,)
