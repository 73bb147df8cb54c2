"""Threshold search by Kullback-Leibler divergence, as in TensorRT and MXNet (algorithms B.2.5)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from datafree.calibrators._centred import Centred, extend
from datafree.calibrators.base import Calibrator
from datafree.quant.grid import Grid

_SMOOTHING = 1e-4
# Windows at a time: their groups fit the cache.
_CHUNK = 256


class KL(Calibrator):
    """Clip where the quantized distribution says most about the distribution of the values.

    For every window of a histogram around 0: ``P`` is the window with the values outside it
    counted in its end bins; ``Q`` is the window without them, merged into as many groups of equal
    size as there are codes and spread evenly over the bins of the group that ``P`` fills. Empty
    bins of either get 1e-4 of its mass. Of the windows that hold half of the values, the one with
    the least ``sum P log(P / Q)`` is taken, the widest among equals, and cut to the extremes.
    """

    citation: ClassVar[str] = (
        "Migacz (2017), 8-bit Inference with TensorRT, NVIDIA GPU Technology Conference; for values"
        " of both signs as in MXNet's code"
    )

    sides: Literal["auto", "both", "positive"] = "auto"
    """Which windows are searched: `both`, ``[-t, t]`` of values in ``2^b - 1`` groups (MXNet);
    `positive`, ``[0, t]`` of magnitudes in as many groups as there are codes above 0 (TensorRT);
    `auto`, `positive` for tensors that were never negative, else `both`."""
    bins: int = Field(default=2048, ge=512, le=8192)
    """Bins of the histogram, at most: TensorRT uses 2048 (positive), MXNet 8001 (both)."""
    zeros: bool = False
    """Count values that are exactly 0. No grid rounds them, yet after a ReLU they are so many that
    they decide the search."""

    def update(self, state: Centred | None, values: Tensor) -> Centred:
        """Count the values; see the base class."""
        return extend(state, values)

    def range(self, state: Centred, grid: Grid) -> tuple[Tensor, Tensor]:
        """The window of least divergence, cut to the extremes."""
        reach = self._threshold(state, grid)
        low = max(-reach, min(state.smallest, 0.0))
        high = min(reach, max(state.largest, 0.0))
        return torch.tensor(low), torch.tensor(high)

    def _threshold(self, state: Centred, grid: Grid) -> float:
        negative = state.smallest < 0
        both = self.sides == "both" or (self.sides == "auto" and negative)
        if both:
            counts, width = state.two_sided(self.bins)
            groups, middle = 2**grid.bits - 1, len(counts) // 2
        else:
            counts, width = state.one_sided(self.bins)
            groups = grid.qmax // 2 if negative and not grid.symmetric else grid.qmax
            middle = 0
        if self.zeros:
            counts[middle] += state.zeros
        if len(counts) < groups or not counts.any():
            return state.magnitude
        stops = torch.arange(middle + (groups + 1) // 2 if both else groups, len(counts) + 1)
        starts = len(counts) - stops if both else torch.zeros_like(stops)
        chunks = zip(starts.split(_CHUNK), stops.split(_CHUNK), strict=True)
        divergence = torch.cat([divergences(counts, *ends, groups) for ends in chunks])
        best = stops[len(stops) - 1 - int(divergence.flip(0).argmin())]
        return width * (float(best) - (len(counts) / 2 if both else 0))


def divergences(counts: Tensor, starts: Tensor, stops: Tensor, groups: int) -> Tensor:
    """``KL(P || Q)`` of every window; infinite where it holds less than half of the values.

    ``Q`` is constant over the filled bins of a group, so a window costs one term per group instead
    of one per bin, all from cumulative sums.

    Args:
        counts: (bins,) float64, not all 0.
        starts: (windows,) first bin of each window.
        stops: (windows,) bin behind the last, at least `groups` above the start.
        groups: number of groups a window is merged into.

    Returns:
        (windows,) float64, in nats.
    """
    total, cumulative = counts.sum(), _cumulative(counts)
    below, above = cumulative[starts], total - cumulative[stops]
    steps = torch.arange(groups + 1)
    # Rounded up: bin i of a window of n bins is in group floor(i * groups / n).
    edges = starts[:, None] + (steps * (stops - starts)[:, None] + groups - 1) // groups
    kept = cumulative[edges].diff(dim=1)
    mass, filled = kept.clone(), _cumulative((counts > 0).double())[edges].diff(dim=1)
    mass[:, 0] += below
    mass[:, -1] += above
    filled[:, 0] += (counts[starts] == 0) & (below > 0)
    filled[:, -1] += (counts[stops - 1] == 0) & (above > 0)

    # Only a folded end can be filled in P and alone in a group that Q leaves empty.
    lost = kept == 0
    inside = kept.sum(1)
    cross = torch.xlogy(mass, torch.where(lost, 1.0, kept / (filled * inside[:, None])))
    empty_p = stops - starts - filled.sum(1)
    empty_q = empty_p + (filled * lost).sum(1)
    share_p, share_q = (1 - _SMOOTHING * (empty > 0).double() for empty in (empty_p, empty_q))
    missing = (mass * lost).sum(1) / total
    divergence = (
        share_p
        * (
            _negative_entropy(counts, starts, stops)
            + share_p.log()
            - cross.sum(1) / total
            - (1 - missing) * share_q.log()
            - missing * (_SMOOTHING / empty_q.clamp(min=1)).log()
        )
        + _SMOOTHING * torch.where(empty_p > 0, empty_q / empty_p.clamp(min=1), 1.0).log()
    )
    # A window that ends in the first filled bin has P = Q, whatever lies beyond.
    return divergence.masked_fill(2 * inside < total, torch.inf)


def _negative_entropy(counts: Tensor, starts: Tensor, stops: Tensor) -> Tensor:
    """(windows,) ``sum P log P`` before smoothing."""
    total, cumulative = counts.sum(), _cumulative(counts)
    terms = _cumulative(torch.xlogy(counts, counts))
    inner = terms[stops] - terms[starts]
    folds = ((starts, cumulative[starts]), (stops - 1, total - cumulative[stops]))
    for end, folded in folds:
        alone, together = counts[end], counts[end] + folded
        inner += torch.xlogy(together, together) - torch.xlogy(alone, alone)
    return inner / total - total.log()


def _cumulative(values: Tensor) -> Tensor:
    """(n + 1,) sums of the first 0, 1 … n entries."""
    return torch.cat((values.new_zeros(1), values.cumsum(0)))
