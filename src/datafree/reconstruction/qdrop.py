"""Randomly dropping quantization (algorithms B.7; Wei et al., ICLR 2022)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from datafree.reconstruction._schedule import Stage
from datafree.reconstruction.base import Reconstructor


class QDrop(Reconstructor):
    """Learn rounding and activation steps together, with part of the activations left in float.

    ``min_(V, s) |B(x) - B'(x'; V, s)|^2`` plus the penalty of `adaround`, between the outputs of
    float block B and student block B', over the rounding variables V of `adaround` and the
    activations' step sizes s. Every element of every activation, and of the block's input x', is
    the float one with probability `drop` while learning.
    """

    citation: ClassVar[str] = (
        "Wei et al. (2022), QDrop: Randomly Dropping Quantization for Extremely Low-bit"
        " Post-Training Quantization, ICLR"
    )

    activation_lr: float = Field(default=4e-5, ge=0)
    """Adam's rate for the activation steps; falls to 0 along a cosine. 0 keeps them."""
    steps_below: int = Field(default=9, ge=2, le=9)
    """Bits from which on activation quantizers keep their calibrated step; 9 learns all, as the
    paper does. 8 spares the classifier's input under policy `brecq`: on images with nearly equal
    pooled features (`zeroq`) a learned step would flatten them."""
    drop: float = Field(default=0.5, ge=0, lt=1)
    """Probability of every element of an activation, and of the block's input, to stay float while
    learning."""

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
