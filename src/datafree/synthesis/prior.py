"""Images for networks that remember nothing of their data but how to classify it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from datafree.config import InputSpec
from datafree.losses import class_logits, total_variation
from datafree.synthesis._images import balanced_targets, chunk_size
from datafree.synthesis._pixels import Canvas, PixelOptimizer, Stage, pink_noise
from datafree.synthesis.base import Batch
from datafree.tensors import device_of


class Prior(PixelOptimizer):
    """Start from images with the spectrum of photographs, and make the network answer to them.

    ``min_x label_weight CE(x, y) - stretch_weight mean_n min(max_k o - min_k o, limit_n) +
    tv_weight TV(x)`` over images that begin as noise whose amplitude falls with frequency f as
    ``1 / f^falloff``, as that of photographs does, with colours that mostly agree. Group norms and
    layer norms keep no statistics, so what is plausible comes from the start and is kept by few
    steps at a low rate; the two terms of the outputs o make logits as wide as on data. Stretching
    alone has no end: for image n it stops at a limit between `least_spread` and `most_spread` times
    what the start has on average, so that images differ in how sure the network is.

    Any network with one output tensor will do.
    """

    citation: ClassVar[str] = (
        "Stretching: Dikstein et al. (2025), Data Generation for Hardware-Friendly Post-Training"
        " Quantization, WACV, arXiv:2410.22110; spectrum: Field (1987), J. Opt. Soc. Am. A"
    )

    iterations: int = Field(default=200, ge=1)
    """Steps of Adam per batch."""
    learning_rate: float = Field(default=0.02, gt=0)
    """Adam's rate at its highest, in deviations of ImageNet's pixels per step."""
    warmup: int = Field(default=20, ge=0)
    """Steps in which the rate rises to its highest; it then falls to 0 as a cosine does."""
    tv_weight: float = Field(default=0.001, ge=0)
    """Weight of the total variation."""
    shift: float = Field(default=1 / 16, ge=0, le=0.5)
    """Share of a side that images are rolled by at most, anew in every step."""
    falloff: float = Field(default=1.0, ge=0)
    """Exponent with which amplitudes of the start fall with frequency; 0 is white noise."""
    stretch_weight: float = Field(default=0.1, ge=0)
    """Weight of the distance from the least to the greatest output."""
    least_spread: float = Field(default=1.0, ge=0)
    """Least distance up to which outputs are stretched, over the start's mean."""
    most_spread: float = Field(default=4.0, ge=0)
    """Greatest distance up to which outputs are stretched, likewise."""

    def stages(self) -> tuple[Stage, ...]:
        """A single one."""
        return (Stage(self.iterations, self.shift),)

    def make_batch(
        self, teacher: nn.Module, spec: InputSpec, batch: Batch, state: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Optimise one batch; see the base class."""
        pixels = pink_noise(batch.size, spec.shape, self.falloff, batch.generator)
        targets = balanced_targets(batch, spec.answers)
        lots = torch.rand(batch.size, generator=batch.generator)
        factors = self.least_spread + lots * (self.most_spread - self.least_spread)
        limits = factors * _typical_spread(state, spec, pixels)

        def loss(images: Tensor, part: slice) -> Tensor:
            logits = class_logits(state(images))
            classes = F.cross_entropy(logits, targets[part].to(logits.device))
            spread = torch.minimum(output_spread(logits), limits[part].to(logits.device))
            return self.label_weight * classes - self.stretch_weight * spread.mean()

        def smooth(pixels: Tensor) -> Tensor:
            return self.tv_weight * total_variation(pixels)

        return self.optimize(state, pixels, loss, smooth, spec, batch), targets


def output_spread(logits: Tensor) -> Tensor:
    """(B,) distance from the least to the greatest of (B, K) outputs of an image."""
    return logits.amax(1) - logits.amin(1)


@torch.no_grad()
def _typical_spread(network: nn.Module, spec: InputSpec, pixels: Tensor) -> float:
    """Mean spread of the outputs on `pixels`, which are in the unit of a `Canvas`."""
    device = device_of(network)
    canvas = Canvas.of(spec, device)
    parts = pixels.split(chunk_size(pixels))
    rows = [
        output_spread(class_logits(network(canvas.normalised(part.to(device))))) for part in parts
    ]
    return float(torch.cat(rows).mean())
