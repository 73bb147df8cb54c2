"""The range with the least quantization error (algorithms B.2.4)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from datafree.calibrators._histogram import Histogram, extend
from datafree.calibrators.base import Calibrator
from datafree.quant.grid import Grid, fake_quantize

# Ranges at a time: the rounded values of all would not fit in memory.
_CHUNK = 128


class MSE(Calibrator):
    """Shrink the extrema step by step and keep the range with the least quantization error.

    Of the candidates ``[l, h]`` the one with the least ``sum |Q(x; l, h) - x|^power`` over a
    histogram of all values, the widest among equals.
    """

    citation: ClassVar[str] = (
        "Common practice, no paper of its own; the searches are those of the released code of DSG,"
        " BRECQ, Genie and QDrop."
    )

    search: Literal["both_ends", "upper", "zero_point"] = "both_ends"
    """What shrinks: `both_ends`, by the same ratio (BRECQ, Genie; tensors that are never negative
    keep 0); `upper`, the upper end by 0.01 of the length at each step while the lower one stays
    (DSG); `zero_point`, the length, with every zero point tried at each (QDrop), except for tensors
    of one sign and symmetric grids, where it is `both_ends`. Zero points take up to 2 seconds per
    tensor and batch at 8 bits, 0.1 at 4 bits."""
    candidates: int = Field(default=80, ge=1, le=100)
    """Number of ranges tried: ratios 1, 0.99, 0.98 … of the extrema or the length. DSG and BRECQ
    try 80, Genie and QDrop 100."""
    power: float = Field(default=2.0, gt=0)
    """Exponent of the error: 2 is the squared error (DSG); BRECQ, Genie and QDrop use 2.4."""

    def update(self, state: Histogram | None, values: Tensor) -> Histogram:
        """Count the values; see the base class."""
        return extend(state, values)

    def range(self, state: Histogram, grid: Grid) -> tuple[Tensor, Tensor]:
        """The best candidate; the widest among equals."""
        lows, highs = self._candidates(min(state.smallest, 0.0), max(state.largest, 0.0), grid)
        errors = torch.cat(
            [
                self._errors(state, low, high, grid)
                for low, high in zip(lows.split(_CHUNK), highs.split(_CHUNK), strict=True)
            ]
        )
        best = int(errors.argmin())
        return lows[best], highs[best]

    def _candidates(self, low: float, high: float, grid: Grid) -> tuple[Tensor, Tensor]:
        """Lower and upper ends of the ranges to try, widest first."""
        ratios = 1 - 0.01 * torch.arange(self.candidates, dtype=torch.float32)
        if self.search == "upper":
            highs = (high - (1 - ratios) * (high - low)).clamp(min=0)
            return torch.full_like(highs, low), highs
        if self.search == "both_ends" or grid.symmetric or low == 0 or high == 0:
            return ratios * low, ratios * high
        steps = (ratios * ((high - low) / grid.qmax))[:, None]
        zero_points = torch.arange(grid.qmax + 1)
        lows, highs = -zero_points * steps, (grid.qmax - zero_points) * steps
        # A range that reaches more than a step beyond the values wastes the codes there: moved by
        # that step it rounds to the same numbers and clips less.
        useful = (lows >= low - steps) & (highs <= high + steps)
        return lows[useful], highs[useful]

    def _errors(self, state: Histogram, lows: Tensor, highs: Tensor, grid: Grid) -> Tensor:
        """(ranges,) sums of the errors of all values."""
        scale, zero_point = grid.parameters(lows, highs)
        values = state.means.float()
        rounded = fake_quantize(values, scale[:, None], zero_point[:, None], grid)
        # In float64, where no power of an error is 0 or infinite.
        errors = (rounded - values).abs().double()
        return (errors.pow(self.power) * state.weights).sum(1)
