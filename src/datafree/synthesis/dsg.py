"""Diverse Sample Generation, post-training (algorithms A.2; Qin et al., arXiv:2109.00212)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from datafree.config import InputSpec
from datafree.graph.taps import BatchNorm, batch_norms, tap_batch_norms
from datafree.losses import STATISTICS_EPS, enhancement_weights, sample_statistics, slack_margin
from datafree.synthesis._images import Alignment, ImageOptimizer, fast_copy, stored_statistics
from datafree.synthesis.base import Batch
from datafree.tensors import device_of

_CHUNK = 64

Granularity = Literal["sample", "batch"]


@dataclass(frozen=True)
class _State:
    network: nn.Module
    delta: Tensor
    gamma: Tensor


class DSG(ImageOptimizer):
    """Slack distribution alignment and layerwise sample enhancement, Eqs. (5)-(8) and (10).

    Margins are quantiles of the gaps that Gaussian images leave (Eq. 6); sample n of the set weighs
    the loss of batch-norm layer ``n mod N`` double. With ``epsilon=0`` and ``enhancement=False`` it
    is ZeroQ.

    Attributes:
        epsilon: quantile of the gaps taken as margin, in [0, 1]; 0 means no slack.
        margin_images: Gaussian images the margins are measured on.
        margin_granularity: `sample` takes the quantile over all images and channels, in the unit of
            the per-sample loss; `batch` over the channels of statistics of the whole set of images.
        enhancement: layerwise sample enhancement.
        batch_size: images optimised together; None makes batches of N, the number of batch-norm
            layers, as the paper does. The losses are per sample and sample n of the whole set has
            layer ``n mod N``, so the size only decides which images share a learning rate.
    """

    epsilon: float = Field(default=0.9, ge=0, le=1)
    margin_images: int = Field(default=1024, ge=2)
    margin_granularity: Granularity = "sample"
    enhancement: bool = True
    batch_size: int | None = Field(default=32, ge=1)

    def batch_images(self, teacher: nn.Module, count: int) -> int:
        """`batch_size` or N, or fewer where fewer are wanted."""
        return min(self.batch_size or len(batch_norms(teacher)), count)

    def prepare(self, teacher: nn.Module, spec: InputSpec, generator: torch.Generator) -> _State:
        """Measure the margins."""
        network = fast_copy(teacher)
        count = self.margin_images if self.epsilon else 2  # without slack any images will do
        noise = torch.randn(count, *spec.shape, generator=generator)
        delta, gamma = margins(network, noise, self.epsilon, self.margin_granularity)
        return _State(network, delta, gamma)

    def alignment(self, layers: int, batch: Batch, state: Any) -> Alignment:
        """The margins, and weights that go on where the batch before stopped."""
        weights = (
            enhancement_weights(layers, batch.size, batch.start)
            if self.enhancement
            else torch.ones(1, 1)
        )
        return Alignment(state.delta, state.gamma, weights)


def margins(
    network: nn.Module, noise: Tensor, epsilon: float, granularity: Granularity = "sample"
) -> tuple[Tensor, Tensor]:
    """Slack margins of Eq. (6): one non-negative number per batch-norm layer and statistic.

    Args:
        network: with its batch norms; not changed.
        noise: (M, C, H, W) Gaussian images.
        epsilon: quantile, 0 to 1.
        granularity: see `DSG`.

    Returns:
        Margins of the means and of the standard deviations, each (N,).
    """
    device = device_of(network)
    collected: dict[int, _Gathered] = {}
    with torch.no_grad(), tap_batch_norms(network) as taps:
        for chunk in noise.split(_CHUNK):
            network(chunk.to(device, memory_format=torch.channels_last))
            for index, (layer, feature) in enumerate(taps):
                gathered = collected.setdefault(index, _Gathered(layer, feature[0, 0].numel()))
                mean, std = sample_statistics(feature)
                gathered.means.append(mean)
                gathered.stds.append(torch.zeros_like(mean) if std is None else std)
    rows = [_layer_margins(gathered, epsilon, granularity) for gathered in collected.values()]
    return torch.stack([delta for delta, _ in rows]), torch.stack([gamma for _, gamma in rows])


@dataclass(frozen=True)
class _Gathered:
    """Statistics of all images at one layer, whose channels have `positions` values per image."""

    layer: BatchNorm
    positions: int
    means: list[Tensor] = field(default_factory=list)
    stds: list[Tensor] = field(default_factory=list)


def _layer_margins(
    gathered: _Gathered, epsilon: float, granularity: Granularity
) -> tuple[Tensor, Tensor]:
    target_mean, target_std = stored_statistics(gathered.layer)
    means, stds = torch.cat(gathered.means), torch.cat(gathered.stds)
    if granularity == "batch":
        # Squares within the samples plus squares between them, over all values but one.
        count, size = len(means), gathered.positions
        within = (stds.square() - STATISTICS_EPS).clamp(min=0).mean(0) * count * (size - 1)
        between = means.var(0) * size * (count - 1)
        stds = torch.sqrt((within + between) / (count * size - 1) + STATISTICS_EPS)
        means = means.mean(0)
    delta = slack_margin((means - target_mean).abs(), epsilon)
    return delta, slack_margin((stds - target_std).abs(), epsilon)
