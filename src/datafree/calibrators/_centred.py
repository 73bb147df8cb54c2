"""A fine histogram centred on zero that grows with its data, regrouped into the bins asked for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_SIDE = 2**15
_SMALLEST_REACH = 1e-30


@dataclass(frozen=True)
class Centred:
    """Counts of values in equal bins over ``[-reach, reach]``, with an edge at 0.

    Attributes:
        reach: outer edge; the largest magnitude seen lies above half of it.
        counts: (2 * 32768,) float64 number of values other than 0, from ``-reach`` upwards.
        zeros: number of values that are exactly 0.
        smallest: smallest value seen.
        largest: largest value seen.
    """

    reach: float
    counts: Tensor
    zeros: int
    smallest: float
    largest: float

    @property
    def magnitude(self) -> float:
        """Largest magnitude seen."""
        return max(-self.smallest, self.largest)

    def one_sided(self, bins: int) -> tuple[Tensor, float]:
        """Magnitudes in at most `bins` bins from 0 up; zeros are left out.

        Returns:
            (n,) float64 counts, and the width of a bin. The last bin holds the largest magnitude.
        """
        magnitudes = self.counts[_SIDE:] + self.counts[:_SIDE].flip(0)
        group = -(-self._used // bins)
        count = -(-self._used // group)
        return _regrouped(magnitudes, 0, count, group), group * self._width

    def two_sided(self, bins: int) -> tuple[Tensor, float]:
        """Values in at most `bins` bins, an odd number, the middle one centred on 0; without zeros.

        Returns:
            (2 m + 1,) float64 counts, and the width of a bin.
        """
        half = -(-self._used // (bins - 1 + bins % 2))
        side = -(-(self._used - half) // (2 * half))
        start = _SIDE - (2 * side + 1) * half
        return _regrouped(self.counts, start, 2 * side + 1, 2 * half), 2 * half * self._width

    @property
    def _width(self) -> float:
        return self.reach / _SIDE

    @property
    def _used(self) -> int:
        """Number of bins from 0 to the one that holds the largest magnitude."""
        return min(int(self.magnitude / self._width) + 1, _SIDE)


def extend(histogram: Centred | None, values: Tensor) -> Centred:
    """`histogram` with `values` added; its reach doubles as often as needed, merging pairs of bins.

    Args:
        histogram: what there is so far, or None.
        values: any shape, finite.
    """
    smallest, largest = (float(v) for v in torch.aminmax(values))
    reach = max(-smallest, largest)
    if histogram is None:
        counts = torch.zeros(2 * _SIDE, dtype=torch.float64)
        histogram = Centred(max(reach, _SMALLEST_REACH), counts, 0, smallest, largest)
    while histogram.reach < reach:
        histogram = _doubled(histogram)
    flat = values.detach().flatten().cpu()
    bins = (flat * (_SIDE / histogram.reach)).floor_().long().add_(_SIDE).clamp_(0, 2 * _SIDE - 1)
    counts = torch.bincount(bins, minlength=2 * _SIDE).double()
    zeros = len(flat) - int(flat.count_nonzero())
    counts[_SIDE] -= zeros
    return Centred(
        histogram.reach,
        histogram.counts + counts,
        histogram.zeros + zeros,
        min(histogram.smallest, smallest),
        max(histogram.largest, largest),
    )


def _doubled(histogram: Centred) -> Centred:
    merged = F.pad(histogram.counts.view(-1, 2).sum(1), (_SIDE // 2, _SIDE // 2))
    return Centred(
        2 * histogram.reach, merged, histogram.zeros, histogram.smallest, histogram.largest
    )


def _regrouped(counts: Tensor, start: int, bins: int, group: int) -> Tensor:
    """`bins` sums of `group` entries of `counts` each, from `start` on; nothing lies outside."""
    before, after = max(-start, 0), max(start + bins * group - len(counts), 0)
    padded = F.pad(counts, (before, after))
    return padded[start + before :][: bins * group].view(bins, group).sum(1)
