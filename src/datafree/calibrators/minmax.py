"""Running extrema: ZeroQ's "vanilla" calibration (algorithms B.2.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from datafree.calibrators.base import Calibrator
from datafree.quant.grid import Grid


class MinMax(Calibrator):
    """The smallest and largest value seen so far, starting from (0, 0)."""

    def update(self, state: tuple[Tensor, Tensor] | None, values: Tensor) -> tuple[Tensor, Tensor]:
        """Widen the extrema; see the base class."""
        low, high = torch.aminmax(values)
        if state is None:
            return low.clamp(max=0), high.clamp(min=0)
        return torch.minimum(state[0], low), torch.maximum(state[1], high)

    def range(self, state: tuple[Tensor, Tensor], grid: Grid) -> tuple[Tensor, Tensor]:
        """The extrema."""
        del grid
        return state
