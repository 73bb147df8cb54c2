"""The range with the least quantization error (algorithms B.2.4)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from datafree.calibrators._histogram import Histogram, extend
from datafree.calibrators.base import Calibrator
from datafree.quant.grid import Grid, fake_quantize


class MSE(Calibrator):
    """Shrink the extrema step by step and keep the range with the least quantization error.

    Tensors that are never negative keep 0 and shrink their upper end, as in DSG's code; others
    shrink both ends by the same ratio.

    Attributes:
        candidates: number of ranges tried: ratios 1, 0.99, 0.98 … of the extrema.
        power: exponent of the error; 2 is the mean squared error.
    """

    candidates: int = Field(default=80, ge=1, le=100)
    power: float = Field(default=2.0, gt=0)

    def update(self, state: Histogram | None, values: Tensor) -> Histogram:
        """Count the values; see the base class."""
        return extend(state, values)

    def range(self, state: Histogram, grid: Grid) -> tuple[Tensor, Tensor]:
        """The best candidate; the widest among equals."""
        ratios = 1 - 0.01 * torch.arange(self.candidates, dtype=torch.float32)
        low = ratios * min(state.smallest, 0.0)
        high = ratios * max(state.largest, 0.0)
        scale, zero_point = grid.parameters(low, high)
        values = state.means.float()
        rounded = fake_quantize(values, scale[:, None], zero_point[:, None], grid)
        errors = ((rounded - values).abs().pow(self.power) * state.weights).sum(1)
        best = int(errors.argmin())
        return low[best], high[best]
