"""A histogram that grows with its data: what range searches run on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from datafree.tensors import extremes

_BINS = 4096
_ORDINARY = 1e-30, 1e38  # length of a histogram
_CHUNK = 2**20  # values counted at a time: each takes four times its own memory meanwhile


@dataclass(frozen=True)
class Histogram:
    """Counts of values in equal bins over ``[low, high]``, with the exact mean of every bin.

    Attributes:
        low: smallest edge, at most the smallest value seen.
        high: largest edge, at least the largest value seen.
        counts: (bins,) float64 number of values.
        sums: (bins,) float64 sum of the values.
        smallest: smallest value seen.
        largest: largest value seen.
    """

    low: float
    high: float
    counts: Tensor
    sums: Tensor
    smallest: float
    largest: float

    @property
    def means(self) -> Tensor:
        """Mean value of the non-empty bins, ascending."""
        filled = self.counts > 0
        return self.sums[filled] / self.counts[filled]

    @property
    def weights(self) -> Tensor:
        """Counts of the non-empty bins."""
        return self.counts[self.counts > 0]

    def quantile(self, share: float) -> float:
        """The value below which `share` of the values lie, linear within a bin."""
        cumulative = self.counts.cumsum(0)
        wanted = share * cumulative[-1]
        index = int(torch.searchsorted(cumulative, wanted))
        before = float(cumulative[index] - self.counts[index])
        inside = (float(wanted) - before) / max(float(self.counts[index]), 1.0)
        width = (self.high - self.low) / _BINS
        value = self.low + (index + inside) * width
        return min(max(value, self.smallest), self.largest)


def extend(histogram: Histogram | None, values: Tensor) -> Histogram:
    """`histogram` with `values` added; its range doubles as often as needed, merging pairs of bins.

    Args:
        histogram: what there is so far, or None.
        values: any shape, finite.
    """
    smallest, largest = (float(v) for v in extremes(values))
    if histogram is None:
        high = largest if largest > smallest else smallest + 1e-6 + abs(smallest) * 1e-6
        empty = torch.zeros(_BINS, dtype=torch.float64)
        histogram = Histogram(smallest, high, empty, empty, smallest, largest)
    while smallest < histogram.low or largest > histogram.high:
        histogram = _doubled(histogram, downwards=smallest < histogram.low)
    counts, sums = (torch.zeros(_BINS, dtype=torch.float64) for _ in range(2))
    whole = values.detach() if values.ndim else values.detach().view(1)
    for part in whole.split(max(1, _CHUNK // whole[0].numel())):
        flat = part.flatten().cpu()
        if not _ORDINARY[0] < histogram.high - histogram.low < _ORDINARY[1]:
            flat = flat.double()  # float32 has no such factors, or no such differences
        scaled = (flat - histogram.low).mul_(_BINS / (histogram.high - histogram.low))
        bins = scaled.long().clamp_(0, _BINS - 1)
        counts += torch.bincount(bins, minlength=_BINS)
        sums.index_add_(0, bins, flat.double())  # adds one by one, in order
    return Histogram(
        histogram.low,
        histogram.high,
        histogram.counts + counts,
        histogram.sums + sums,
        min(histogram.smallest, smallest),
        max(histogram.largest, largest),
    )


def _doubled(histogram: Histogram, *, downwards: bool) -> Histogram:
    width = histogram.high - histogram.low
    merged = [v.view(-1, 2).sum(1) for v in (histogram.counts, histogram.sums)]
    empty = torch.zeros(_BINS // 2, dtype=torch.float64)
    counts, sums = (torch.cat((empty, m) if downwards else (m, empty)) for m in merged)
    low = histogram.low - width if downwards else histogram.low
    high = histogram.high if downwards else histogram.high + width
    return Histogram(low, high, counts, sums, histogram.smallest, histogram.largest)
