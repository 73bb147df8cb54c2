"""Weights learned straight through their rounding, block by block."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from datafree.reconstruction._schedule import Stage
from datafree.reconstruction.qdrop import QDrop


class Straight(QDrop):
    """Learn the weights of a block themselves, their step sizes and those of activations.

    ``min_(U, s, s_a) |B(x) - B'(x'; U, s, s_a)|^2`` between the outputs of float block B and
    student block B', with the weights ``W' = s (clip(round(U s_0 / s + z), qmin, qmax) - z)``. A
    weight may go further than to its two neighbours on the grid, which is all that `adaround` and
    what follows from it allow, and nothing has to drive it to either of them.
    """

    citation: ClassVar[str] = (
        "Blocks of Li et al. (2021), BRECQ, ICLR, with the steps of Esser et al. (2020), Learned"
        " Step Size Quantization, ICLR, and the dropping of Wei et al. (2022), QDrop, ICLR"
    )

    rounding_lr: float = Field(default=1e-3, gt=0)
    """Adam's rate for the weights, in their first step sizes; falls to 0 along a cosine."""
    rounding_weight: float = Field(default=0.0, ge=0, le=0)
    """Weights are always rounded here: there is nothing to penalise."""
    weight_step_lr: float = Field(default=1e-4, ge=0)
    """Adam's rate for the weights' step sizes; falls to 0 along a cosine. 0 keeps them."""

    def stages(self) -> tuple[Stage, ...]:
        """One pass: weights, their steps and activation steps."""
        (dropping,) = super().stages()
        stage = replace(dropping, weight_step_lr=self.weight_step_lr, weights="straight")
        return (stage,)
