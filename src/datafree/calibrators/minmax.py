"""Running extrema: ZeroQ's "vanilla" calibration (algorithms B.2.1)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from datafree.calibrators.base import Calibrator
from datafree.quant.grid import Grid


class MinMax(Calibrator):
    """Take the smallest and largest value seen so far: ``[min(0, min x), max(0, max x)]``."""

    citation: ClassVar[str] = (
        "Common practice, no paper of its own; the calibration of ZeroQ's released code."
    )

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
