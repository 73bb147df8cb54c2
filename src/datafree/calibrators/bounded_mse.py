"""The least-error range, never below a share of the extrema (DFQF; algorithms B.2.7)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from datafree.calibrators._histogram import Histogram, extend
from datafree.calibrators.base import Calibrator
from datafree.calibrators.mse import MSE
from datafree.quant.grid import Grid


class BoundedMSE(Calibrator):
    """Clip each batch for the least squared error, but not tightly, and average over the batches.

    ``A = max(A_mse, r max|x|)``, in which ``A_mse`` is the best of the ratios 1, 0.99 … 0.01 of the
    extrema; both ends of a tensor of two signs shrink together. Ranges are where learned step sizes
    start from, and a step that starts tiny can be learned below zero.
    """

    citation: ClassVar[str] = (
        "Li et al. (2020), DFQF: Data Free Quantization-aware Fine-tuning, ACML"
    )

    lower_bound: float = Field(default=0.3, ge=0, le=1)
    """Smallest ratio r of the clip to the extrema; the paper's code has 0.5."""

    def update(self, state: tuple[Histogram, ...] | None, values: Tensor) -> tuple[Histogram, ...]:
        """Count one batch by itself, as the best ratio depends on the grid; see the base class."""
        return (*(state or ()), extend(None, values))

    def range(self, state: tuple[Histogram, ...], grid: Grid) -> tuple[Tensor, Tensor]:
        """Mean of the batches' ranges."""
        lows, highs = zip(*(self._range(batch, grid) for batch in state), strict=True)
        low, high = (torch.stack(ends).mean(dtype=torch.float64) for ends in (lows, highs))
        return low.float(), high.float()

    def _range(self, batch: Histogram, grid: Grid) -> tuple[Tensor, Tensor]:
        low, high = MSE(candidates=100).range(batch, grid)
        return (
            low.clamp(max=self.lower_bound * min(batch.smallest, 0.0)),
            high.clamp(min=self.lower_bound * max(batch.largest, 0.0)),
        )
