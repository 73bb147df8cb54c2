"""Joint learning of step sizes and rounding (algorithms B.8; Jeon et al., CVPR 2023)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from datafree.reconstruction._schedule import Stage
from datafree.reconstruction.base import Reconstructor


class GenieM(Reconstructor):
    """QDrop that learns the weights' step sizes too, around base integers that stay as they began.

    Differs from the released code in working on folded batch norms.

    Attributes:
        weight_step_lr: rate of the weights' step sizes, falls to 0 along a cosine.
        activation_lr: rate of the activation steps, likewise.
        steps_below: activation quantizers of at least so many bits keep their calibrated step; 9
            learns all, as the paper does. 8 spares the classifier's input under policy `brecq`: on
            images with nearly equal pooled features (`zeroq`) a learned step would flatten them.
        drop: probability of an activation to stay float.
        compat: `official` makes batches of a 32nd of the images, as the released code does; equal
            for 1024 images.
    """

    rounding_weight: float = Field(default=1.0, ge=0)
    weight_step_lr: float = Field(default=1e-4, ge=0)
    activation_lr: float = Field(default=4e-5, ge=0)
    steps_below: int = Field(default=9, ge=2, le=9)
    drop: float = Field(default=0.5, ge=0, lt=1)
    compat: Literal["paper", "official"] = "paper"

    def stages(self) -> tuple[Stage, ...]:
        """One pass: rounding, weight steps and activation steps."""
        stage = Stage(
            self.iterations,
            self.rounding_lr,
            weight_step_lr=self.weight_step_lr,
            activation_lr=self.activation_lr,
            steps_below=self.steps_below,
            drop=self.drop,
        )
        return (stage,)

    def batch(self, images: int) -> int:
        """As `compat` says; see the class."""
        return max(1, images // 32) if self.compat == "official" else super().batch(images)
