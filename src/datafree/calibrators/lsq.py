"""The step that LSQ starts learning from (algorithms B.9; Esser et al., ICLR 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from datafree.calibrators.base import Calibrator
from datafree.quant.grid import Grid
from datafree.quant.ranges import lsq_ends


@dataclass(frozen=True)
class _Magnitude:
    total: Tensor
    count: int
    negative: bool


class LSQStart(Calibrator):
    """Set the step to ``2 mean|x| / sqrt(Q_P)`` over all images; for steps that are learned later.

    ``Q_P`` is the largest code: ``2^b - 1`` for a tensor that is never negative, else
    ``2^(b-1) - 1``, also on affine grids, whose zero point then stands in the middle. At 8 bits the
    range is many times as wide as the values: it is no range to quantize with as it is.
    """

    tight: ClassVar[bool] = False
    citation: ClassVar[str] = "Esser et al. (2020), Learned Step Size Quantization, ICLR"

    def update(self, state: _Magnitude | None, values: Tensor) -> _Magnitude:
        """Add up one batch; see the base class."""
        total = values.abs().sum(dtype=torch.float64)
        negative = bool((values < 0).any())
        if state is None:
            return _Magnitude(total, values.numel(), negative)
        return _Magnitude(
            state.total + total, state.count + values.numel(), state.negative or negative
        )

    def range(self, state: _Magnitude, grid: Grid) -> tuple[Tensor, Tensor]:
        """The range of that step."""
        signed = grid.signed if grid.symmetric else state.negative
        return lsq_ends(state.total / state.count, grid, signed=signed)
