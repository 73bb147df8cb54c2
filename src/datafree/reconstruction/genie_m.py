"""Joint learning of step sizes and rounding (algorithms B.8; Jeon et al., CVPR 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, fx

from datafree.errors import ConfigError
from datafree.graph.slopes import channel_slopes
from datafree.reconstruction._schedule import Stage
from datafree.reconstruction.base import Reconstructor


class GenieM(Reconstructor):
    """Do as QDrop and learn the weights' step sizes too, around base integers that stay.

    ``min_(V, s, s_a) |B(x) - B'(x'; V, s, s_a)|^2`` plus the penalty of `adaround`, with the
    weights ``W' = s (clip(floor(W / s_0) + h(V) + z, qmin, qmax) - z)`` of first step sizes ``s_0``
    and the activations' step sizes ``s_a``. So ``d W' / d s`` is the integer code less the zero
    point, and V and s do not work against each other. Differs from the released code in working on
    folded batch norms, whose weights ``W' = a W`` have steps ``|a|`` times as large (0.4 times on
    ResNet-20); with ``step_rates=unfolded`` they learn as in front of the norms, to the last step
    of Adam.
    """

    citation: ClassVar[str] = (
        "Jeon, Lee, Kim (2023), Genie: Show Me the Data for Quantization, CVPR"
    )

    rounding_weight: float = Field(default=1.0, ge=0)
    weight_step_lr: float = Field(default=1e-4, ge=0)
    """Adam's rate for the weights' step sizes; falls to 0 along a cosine. 0 keeps them."""
    step_rates: Literal["folded", "unfolded"] = "folded"
    """Whose step sizes `weight_step_lr` moves: those of the `folded` weights; or those in front of
    the batch norms (`unfolded`), as the paper has it: the rate is then that of each channel times
    the slope of its norm."""
    activation_lr: float = Field(default=4e-5, ge=0)
    """Adam's rate for the activation steps; falls to 0 along a cosine. 0 keeps them."""
    steps_below: int = Field(default=9, ge=2, le=9)
    """Bits from which on activation quantizers keep their calibrated step; 9 learns all, as the
    paper does. 8 spares the classifier's input under policy `brecq`: on images with nearly equal
    pooled features (`zeroq`) a learned step would flatten them."""
    drop: float = Field(default=0.5, ge=0, lt=1)
    """Probability of every element of an activation, and of the block's input, to stay float while
    learning."""
    compat: Literal["paper", "official"] = "paper"
    """Images per step: `paper` takes `batch_size`; `official` takes a 32nd of the images, as the
    released code does. The two are equal for 1024 images in batches of 32."""

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

    def step_units(self, unfolded: fx.GraphModule | None) -> Mapping[str, Tensor]:
        """Slopes of the folded norms, if `step_rates` asks for them.

        Raises:
            ConfigError: it does, and the unfolded graph was not given.
        """
        if self.step_rates == "folded":
            return {}
        if unfolded is None:
            raise ConfigError(
                "step_rates=unfolded needs the network with its batch norms: give it as unfolded,"
                " or take step_rates=folded"
            )
        return channel_slopes(unfolded)
