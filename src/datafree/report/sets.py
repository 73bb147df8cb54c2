"""Synthetic images beside noise and real ones: the paper's figures 2, 6 and 7 with its measures.

Three batch norms are looked at closely, the first, the middle and the last, in the channel of
median deviation; measures are means over all channels of all batch norms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from datafree.images import SyntheticSet, device_batches
from datafree.report.features import Features, NormStatistics, features_of
from datafree.report.measures import (
    density,
    distance_to_normal,
    effective_rank,
    projected,
    similarity,
    variance_of_statistics,
)
from datafree.tensors import device_of, release_memory

SYNTHETIC, NOISE, REAL = "synthetic", "noise", "real"
_VALUES = 256 * 3 * 32 * 32  # of all images of a set: a few passes of a small network
_LEAST, _MOST = 16, 256  # images of a set
_BINS = 60
_REACH = 4.0  # deviations shown on each side of the mean


@dataclass(frozen=True)
class Channel:
    """One channel of one batch norm.

    Attributes:
        path: of the batch norm.
        index: of the channel.
        mean: that the batch norm remembers.
        std: likewise.
        start: left edge of the first bin of values.
        width: of a bin.
        shares: of the values by set and bin.
        points: mean and deviation of every image by set; empty where a deviation is undefined.
    """

    path: str
    index: int
    mean: float
    std: float
    start: float
    width: float
    shares: dict[str, tuple[float, ...]]
    points: dict[str, tuple[tuple[float, float], ...]]


@dataclass(frozen=True)
class Plane:
    """Sets on the first two principal components of all of them together.

    Attributes:
        explained: shares of the variance, of both.
        points: by set.
    """

    explained: tuple[float, float]
    points: dict[str, tuple[tuple[float, float], ...]]


@dataclass(frozen=True)
class Measured:
    """One set, measured; None where a measure is undefined or there are no batch norms.

    Attributes:
        name: of the set.
        images: their number.
        distance: to the normal distributions of the batch norms, in deviations (D.1).
        variance: of the statistics of single images (D.2).
        density: of features and of images on their planes (D.3).
        similarity: mean cosine of two features, and of two images (D.4).
        rank: in how many directions features differ (D.5).
    """

    name: str
    images: int
    distance: float | None
    variance: float | None
    density: tuple[float | None, float | None]
    similarity: tuple[float | None, float | None]
    rank: float | None


@dataclass(frozen=True)
class Sets:
    """All sets of a report.

    Attributes:
        measured: a row for each.
        channels: looked at closely; none where the network has no batch norm.
        features: plane of what enters the last layer.
        pixels: plane of the images themselves.
        outputs: (N, …) what the network returns for the synthetic images.
    """

    measured: tuple[Measured, ...]
    channels: tuple[Channel, ...]
    features: Plane
    pixels: Plane
    outputs: Tensor


def sets_of(
    teacher: fx.GraphModule, images: SyntheticSet, real: SyntheticSet | None = None, seed: int = 0
) -> Sets:
    """Synthetic images beside as many of noise, and of real ones if there are some.

    Args:
        teacher: canonical graph with its batch norms.
        images: at least one.
        real: to compare with.
        seed: of the noise N(0, 1).
    """
    count = min(len(images), at_most(images))
    if real is not None:
        count = min(count, len(real))
    random = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, *images.spec.shape, generator=random)
    given = {SYNTHETIC: images.subset(count), NOISE: SyntheticSet(noise, images.spec)}
    if real is not None:
        given[REAL] = real.subset(count)
    found: dict[str, Features] = {}
    for name, one in given.items():
        batches = device_batches(one, device_of(teacher))
        found[name] = features_of(teacher, batches, count, seed)
        release_memory(teacher)
    features, own = projected([one.last for one in found.values()])
    pixels, share = projected([one.images for one in given.values()])
    rows = [
        _measured(name, given[name].images, found[name], planes)
        for name, planes in zip(given, zip(features, pixels, strict=True), strict=True)
    ]
    return Sets(
        measured=tuple(rows),
        channels=tuple(_channels({name: one.norms for name, one in found.items()})),
        features=Plane(own, dict(zip(given, map(_pairs, features), strict=True))),
        pixels=Plane(share, dict(zip(given, map(_pairs, pixels), strict=True))),
        outputs=found[SYNTHETIC].outputs,
    )


def at_most(images: SyntheticSet) -> int:
    """Images of a set that a report looks at: fewer of large ones."""
    return min(_MOST, max(_LEAST, _VALUES // images.images[0].numel()))


def _measured(
    name: str, images: Tensor, features: Features, planes: tuple[Tensor, Tensor]
) -> Measured:
    distances = [distance_to_normal(n.values, n.mean, n.std) for n in features.norms]
    variances = [variance_of_statistics(n.means, n.stds, n.std) for n in features.norms]
    return Measured(
        name=name,
        images=len(images),
        distance=_mean(distances),
        variance=_mean(variances),
        density=(_known(density(planes[0])), _known(density(planes[1]))),
        similarity=(_known(similarity(features.last)), _known(similarity(images))),
        rank=_known(effective_rank(features.last)),
    )


def _channels(norms: Mapping[str, Sequence[NormStatistics]]) -> list[Channel]:
    """First, middle and last batch norm."""
    count = len(norms[SYNTHETIC])
    places = sorted({0, count // 2, count - 1}) if count else []
    return [_channel({name: one[place] for name, one in norms.items()}) for place in places]


def _channel(norms: Mapping[str, NormStatistics]) -> Channel:
    known = norms[SYNTHETIC]
    row = int(known.std.argsort()[len(known.std) // 2])
    mean, std = float(known.mean[row]), float(known.std[row])
    start, width = mean - _REACH * std, 2 * _REACH * std / _BINS
    shares: dict[str, tuple[float, ...]] = {}
    points: dict[str, tuple[tuple[float, float], ...]] = {}
    for name, one in norms.items():
        values = one.values[row]
        # Of all values, those shown: what lies further out is counted and not drawn.
        counts = torch.histc(values, _BINS, start, start + _BINS * width)
        shares[name] = tuple(round(share, 5) for share in (counts / len(values)).tolist())
        if one.stds is not None:
            points[name] = _pairs(torch.stack((one.means[:, row], one.stds[:, row]), 1))
    return Channel(known.path, int(known.channels[row]), mean, std, start, width, shares, points)


def _pairs(points: Tensor) -> tuple[tuple[float, float], ...]:
    return tuple((float(f"{x:.4g}"), float(f"{y:.4g}")) for x, y in points.tolist())


def _mean(values: Sequence[Tensor]) -> float | None:
    return _known(float(torch.cat(list(values)).mean())) if values else None


def _known(value: float) -> float | None:
    return value if value == value and abs(value) != float("inf") else None
