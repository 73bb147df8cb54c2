"""Analytic clipping (ACIQ, Banner et al. 2019; algorithms B.2.6)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from datafree.calibrators._histogram import Histogram, extend
from datafree.calibrators.base import Calibrator
from datafree.quant.grid import Grid, fake_quantize


@dataclass(frozen=True)
class _Values:
    histogram: Histogram
    zeros: int


class ACIQ(Calibrator):
    """Clip where clipping and rounding noise of an assumed distribution are least in sum.

    The range is ``[mean - a, mean + a]``, cut to the extremes. At M bits, a minimises
    ``2 b^2 exp(-a / b) + a^2 / (3 4^M)`` for a Laplace distribution of scale b = mean
    ``|x - mean|``, and ``(a^2 + s^2) erfc(a / (s sqrt 2)) - sqrt(2 / pi) a s exp(-a^2 / (2 s^2)) +
    a^2 / (3 4^M)`` for a Gauss distribution of standard deviation s.

    For values that were never negative the range is ``[0, a]``: half of that of the mirrored
    values, whose codes have one bit more where the grid spends none below 0. Their zeros are left
    out of the statistics; they stand for the half that the activation function cut off.
    """

    citation: ClassVar[str] = (
        "Banner et al. (2019), Post-training 4-bit Quantization of Convolution Networks for"
        " Rapid-Deployment, NeurIPS, arXiv:1810.05723"
    )

    distribution: Literal["auto", "laplace", "gauss"] = "auto"
    """Distribution the values are taken to have: `laplace`, `gauss`, or `auto`, the one whose range
    quantizes a histogram of the values with the smaller squared error."""
    sigma: Literal["sample", "range"] = "sample"
    """Where the standard deviation of the Gauss distribution comes from: `sample` measures it on
    the values; `range` takes it from their extremes and their number n, ``(max - min) 0.175 (1 +
    sqrt(pi ln 4)) / sqrt(2 ln n)``."""

    def update(self, state: _Values | None, values: Tensor) -> _Values:
        """Count the values; see the base class."""
        zeros = values.numel() - int(values.count_nonzero())
        if state is None:
            return _Values(extend(None, values), zeros)
        return _Values(extend(state.histogram, values), state.zeros + zeros)

    def range(self, state: _Values, grid: Grid) -> tuple[Tensor, Tensor]:
        """The range of least noise under the distribution."""
        ranges = [self._range(state, grid, name) for name in ("laplace", "gauss")]
        if self.distribution == "auto":
            return min(ranges, key=lambda ends: _squared_error(state.histogram, grid, *ends))
        return ranges[0 if self.distribution == "laplace" else 1]

    def _range(self, state: _Values, grid: Grid, distribution: str) -> tuple[Tensor, Tensor]:
        histogram = state.histogram
        half = histogram.smallest >= 0
        bits = grid.bits + (half and not (grid.symmetric and grid.signed))
        mean, deviation, sigma = _statistics(state, mirrored=half)
        if distribution == "laplace":
            reach = laplace_clip(bits) * deviation
        else:
            reach = gauss_clip(bits) * (sigma if self.sigma == "sample" else _from_range(state))
        low = min(max(mean - reach, histogram.smallest), 0.0)
        high = max(min(mean + reach, histogram.largest), 0.0)
        return torch.tensor(low), torch.tensor(high)


@functools.cache
def laplace_clip(bits: int) -> float:
    """Best clip over the scale b of a Laplace distribution, at `bits` bits.

    Minimises ``2 b^2 exp(-a / b) + a^2 / (3 4^bits)``: the root of ``x exp(x) = 3 4^bits``.
    """
    return _root(lambda x: (x + math.log(x) - math.log(3 * 4**bits), 1 + 1 / x), 1.0)


@functools.cache
def gauss_clip(bits: int) -> float:
    """Best clip over the standard deviation s of a Gauss distribution, at `bits` bits.

    Minimises ``(a^2 + s^2) erfc(a / (s sqrt 2)) - sqrt(2 / pi) a s exp(-a^2 / 2 s^2)
    + a^2 / (3 4^bits)``: the root of its derivative.
    """

    def derivative(x: float) -> tuple[float, float]:
        slope = math.erfc(x / math.sqrt(2)) + 1 / (3 * 4**bits)
        return x * slope - math.sqrt(2 / math.pi) * math.exp(-x * x / 2), slope

    return _root(derivative, 0.0)


def _root(function: Callable[[float], tuple[float, float]], start: float) -> float:
    """Root of a rising concave function by Newton's method, from a `start` below it.

    Args:
        function: value and slope.
        start: where the function is negative; tangents of a concave function then never overshoot.
    """
    step, x = 1.0, start
    while step > 1e-12 * x:
        value, slope = function(x)
        step = -value / slope
        x += step
    return x


def _statistics(state: _Values, *, mirrored: bool) -> tuple[float, float, float]:
    """Mean, mean absolute deviation from it and standard deviation.

    With `mirrored`, of all values but the zeros together with their negatives.
    """
    values, counts = state.histogram.means, state.histogram.weights
    total = float(counts.sum())
    if mirrored:
        total = max(total - state.zeros, 1.0)
        mean = 0.0
    else:
        mean = float((values * counts).sum()) / total
    distances = (values - mean).abs()
    deviation = float((distances * counts).sum()) / total
    return mean, deviation, math.sqrt(float((distances.square() * counts).sum()) / total)


def _from_range(state: _Values) -> float:
    """Standard deviation of a Gauss distribution, from the extremes of a sample of known size."""
    histogram = state.histogram
    count, length = float(histogram.counts.sum()), histogram.largest - histogram.smallest
    if histogram.smallest >= 0:
        count, length = 2 * (count - state.zeros), 2 * histogram.largest
    share = 0.5 * 0.35 * (1 + math.sqrt(math.pi * math.log(4)))
    return length * share / math.sqrt(2 * math.log(max(count, 2)))


def _squared_error(histogram: Histogram, grid: Grid, low: Tensor, high: Tensor) -> float:
    values = histogram.means.float()
    rounded = fake_quantize(values, *grid.parameters(low, high), grid)
    # In float64, where no square is 0 or infinite.
    return float(((rounded - values).double().square() * histogram.weights).sum())
