"""How far features are from what batch norms remember, and how much of that is allowed (A.2)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.graph.taps import BatchNorm, stored_statistics, tap_batch_norms
from datafree.graph.watched import Statistics
from datafree.losses import (
    STATISTICS_EPS,
    batch_statistics,
    sample_statistics,
    slack_margin,
)
from datafree.tensors import device_of
from datafree.tensors.memory import Portion

Granularity = Literal["sample", "batch"]
Unit = Literal["std", "variance"]

_CHUNK = 64


@dataclass(frozen=True)
class Alignment:
    """Margins of every batch-norm layer and the weight of every (layer, sample) pair.

    Attributes:
        delta: (N,) margins of the means.
        gamma: (N,) margins of the standard deviations.
        weights: (N, B) or (1, 1).
    """

    delta: Tensor
    gamma: Tensor
    weights: Tensor

    def by_channel(self, channels: tuple[int, ...]) -> Alignment:
        """Margins (M,) and weights (B, M) or (1, M) of all channels side by side.

        Args:
            channels: of the N layers; M is their sum.
        """
        device = self.weights.device
        counts = torch.tensor(channels, device=device)
        weights = self.weights.expand(len(channels), -1).T
        return Alignment(
            self.delta.to(device).repeat_interleave(counts),
            self.gamma.to(device).repeat_interleave(counts),
            weights.repeat_interleave(counts, 1),
        )

    def to(self, device: torch.device) -> Alignment:
        """The same on `device`."""
        return Alignment(*(t.to(device) for t in (self.delta, self.gamma, self.weights)))

    def of_samples(self, part: slice) -> Alignment:
        """Those of some samples, of what `by_channel` returns."""
        rows = self.weights if len(self.weights) == 1 else self.weights[part]
        return replace(self, weights=rows)


def alignment_loss(
    features: list[Tensor], stored: list[tuple[Tensor, Tensor]], aligned: Alignment
) -> Tensor:
    """`statistics_loss` of the inputs of batch norms.

    A layer that sees one value per channel and row (1x1 maps, inputs of `BatchNorm1d`) is compared
    by the statistics of all rows together: alone, each would be driven to the mean.

    Args:
        features: N inputs of batch-norm layers, each (B, C, …).
        stored: N pairs of running mean and std, each (C,).
        aligned: margins and weights.

    Returns:
        Scalar.
    """
    gaps: list[Tensor] = []
    deviations: list[Tensor] = []
    samples = next((len(feature) for feature in features if not one_value(feature)), 1)
    for feature, (mean, std) in zip(features, stored, strict=True):
        alone = not one_value(feature)
        own_mean, own_std = sample_statistics(feature) if alone else batch_statistics(feature)
        gaps.append((own_mean - mean).expand(samples, -1))
        deviations.append((std if own_std is None else own_std).expand(samples, -1))
    together = Statistics(
        torch.cat(gaps, 1), torch.cat(deviations, 1), torch.cat([std for _, std in stored]),
        tuple(len(mean) for mean, _ in stored),
    )  # fmt: skip
    device = together.gaps.device
    return statistics_loss(together, aligned.by_channel(together.channels).to(device))


def statistics_loss(found: Statistics, aligned: Alignment) -> Tensor:
    """``1/B sum_n sum_l weights[l, n] * loss[l, n]`` with DSG's per-sample slack losses (A.2.3).

    Args:
        found: (S, N), of S samples.
        aligned: margins and weights by channel.

    Returns:
        Scalar.
    """
    means = F.relu(found.gaps.abs() - aligned.delta).square()
    spreads = F.relu((found.deviations - found.stored).abs() - aligned.gamma).square()
    losses = (means + spreads) * aligned.weights
    return losses.sum() / len(losses)


def one_value(features: Tensor) -> bool:
    """Whether every row of `features` (B, C, …) has one value per channel."""
    return features.ndim == 2 or features[0, 0].numel() == 1


def as_one_sample(features: Tensor) -> Tensor:
    """(B, C, …) as (1, C, B …), so that `alignment_loss` compares statistics of the whole batch."""
    return features.transpose(0, 1).flatten(1).unsqueeze(0)


def margins(
    network: nn.Module,
    noise: Tensor,
    epsilon: float,
    granularity: Granularity = "sample",
    unit: Unit = "std",
) -> tuple[Tensor, Tensor]:
    """Slack margins of Eq. (6): one non-negative number per batch-norm layer and statistic.

    Args:
        network: with its batch norms; not changed.
        noise: (M, C, H, W) Gaussian images.
        epsilon: quantile, 0 to 1.
        granularity: see `DSG`.
        unit: of the second margins: standard deviations, or biased variances, as the loss has them.

    Returns:
        Margins of the means and of the standard deviations or variances, each (N,).
    """
    portion = Portion("measuring margins", min(_CHUNK, len(noise)))
    collected = portion.fit(lambda size: _gathered(network, noise, size))
    rows = [_layer_margins(gathered, epsilon, granularity, unit) for gathered in collected]
    return torch.stack([delta for delta, _ in rows]), torch.stack([gamma for _, gamma in rows])


@dataclass(frozen=True)
class _Gathered:
    """Statistics of all images at one layer, whose channels have `positions` values per image."""

    layer: BatchNorm
    positions: int
    means: list[Tensor] = field(default_factory=list)
    stds: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def _gathered(network: nn.Module, noise: Tensor, size: int) -> list[_Gathered]:
    """Of every batch norm, `size` images at a time."""
    device = device_of(network)
    collected: dict[int, _Gathered] = {}
    with tap_batch_norms(network) as taps:
        for chunk in noise.split(size):
            network(chunk.to(device, memory_format=torch.channels_last))
            for index, (layer, feature) in enumerate(taps):
                gathered = collected.setdefault(index, _Gathered(layer, feature[0, 0].numel()))
                mean, std = sample_statistics(feature)
                gathered.means.append(mean)
                gathered.stds.append(torch.zeros_like(mean) if std is None else std)
    return list(collected.values())


def _layer_margins(
    gathered: _Gathered, epsilon: float, granularity: Granularity, unit: Unit
) -> tuple[Tensor, Tensor]:
    target_mean, target_std = stored_statistics(gathered.layer)
    means, stds = torch.cat(gathered.means), torch.cat(gathered.stds)
    together = gathered.positions
    if granularity == "batch" or gathered.positions == 1:
        # Squares within the samples plus squares between them, over all values but one.
        count, size = len(means), gathered.positions
        within = (stds.square() - STATISTICS_EPS).clamp(min=0).mean(0) * count * (size - 1)
        between = means.var(0) * size * (count - 1)
        stds = torch.sqrt((within + between) / (count * size - 1) + STATISTICS_EPS)
        means = means.mean(0)
        together = count * size
    delta = slack_margin((means - target_mean).abs(), epsilon)
    if unit == "variance":
        biased = (stds.square() - STATISTICS_EPS) * ((together - 1) / together)
        target_std, stds = target_std.square() - STATISTICS_EPS, biased
    return delta, slack_margin((stds - target_std).abs(), epsilon)
