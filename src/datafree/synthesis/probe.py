"""Many cheap images to compare two networks on, for the estimate of what was lost."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from datafree.config import InputSpec
from datafree.graph.taps import batch_norms
from datafree.graph.watched import Statistics, WatchedNetwork, watched
from datafree.losses import first_logits, total_variation
from datafree.synthesis._images import asked_classes
from datafree.synthesis._pixels import PixelOptimizer, Stage, pink_noise
from datafree.synthesis.base import Batch
from datafree.tensors import fast_copy


class Probe(PixelOptimizer):
    """Start from images with the spectrum of photographs; a few steps to statistics and classes.

    ``min_x mean_l D_l(x) statistics_weight + label_weight CE(x, y) + tv_weight TV(x)``, where D_l
    is the squared distance of the batch's mean and deviation from what batch norm l stored, in
    deviations of its channels. Without batch norms the first term falls away, without classes the
    second.
    """

    citation: ClassVar[str] = (
        "Statistics of batches as in Yin et al. (2020), Dreaming to Distill, CVPR, with far fewer"
        " steps"
    )

    batch_size: int = Field(default=64, ge=1)
    """Images optimised together, at most."""
    iterations: int = Field(default=12, ge=1)
    """Steps of Adam per batch."""
    learning_rate: float = Field(default=0.3, gt=0)
    """Adam's rate at its highest, in deviations of ImageNet's pixels per step."""
    warmup: int = Field(default=2, ge=0)
    """Steps in which the rate rises to its highest; it then falls to 0 as a cosine does."""
    statistics_weight: float = Field(default=1.0, ge=0)
    """Weight of the distance from the statistics."""
    tv_weight: float = Field(default=0.0, ge=0)
    """Weight of the total variation."""
    falloff: float = Field(default=0.7, ge=0)
    """Exponent with which amplitudes of the start fall with frequency; 0 is white noise."""

    def stages(self) -> tuple[Stage, ...]:
        """A single one, in which images stay where they are."""
        return (Stage(self.iterations, 0.0),)

    def prepare(self, teacher: nn.Module, spec: InputSpec, generator: torch.Generator) -> Any:
        """A copy of the teacher, which tells its statistics if it has any."""
        if not batch_norms(teacher):
            return super().prepare(teacher, spec, generator)
        return watched(fast_copy(teacher), together=True)

    def make_batch(
        self, teacher: nn.Module, spec: InputSpec, batch: Batch, state: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Optimise one batch; see the base class."""
        pixels = pink_noise(batch.size, spec.shape, self.falloff, batch.generator)
        targets = asked_classes(batch, spec)

        def loss(images: Tensor, part: slice) -> Tensor:
            outputs = state(images)
            total = outputs.sum() * 0.0
            if isinstance(state, WatchedNetwork):
                total = total + self.statistics_weight * distance(state.statistics())
            if targets is not None:
                logits = first_logits(outputs, spec.outputs)
                wanted = targets[part].to(logits.device)
                total = total + self.label_weight * F.cross_entropy(logits, wanted)
            return total

        def smooth(pixels: Tensor) -> Tensor:
            return self.tv_weight * total_variation(pixels)

        return self.optimize(state, pixels, loss, smooth, spec, batch), targets


def distance(found: Statistics) -> Tensor:
    """Mean over layers of the mean over channels of ``((m' - m) / s)^2 + (s' / s - 1)^2``.

    Args:
        found: one row, over a batch: of means m' and deviations s', and the stored m and s.
    """
    gaps = (found.gaps / found.stored).square()
    spread = (found.deviations / found.stored - 1).square()
    return ((gaps + spread)[0] @ found.shares()) / len(found.channels)
