"""Averaged extrema (algorithms B.2.2): per sample as in DSG, or over batches in time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from datafree.calibrators.base import Calibrator
from datafree.quant.grid import Grid


@dataclass(frozen=True)
class _Average:
    low: Tensor
    high: Tensor
    batches: int


class EMA(Calibrator):
    """Average extrema instead of taking them over everything, which leaves out rare outliers.

    In mode `sample` the upper end is ``max_t mean_n max(x_tn)`` over the images n of batch t, and
    the lower one likewise. In mode `momentum` either end is ``v_T / (1 - momentum^T)`` after T
    batches, with ``v_t = momentum v_(t-1) + (1 - momentum) x_t`` of their extrema ``x_t``.
    """

    citation: ClassVar[str] = (
        "No paper of its own: mode sample is that of DSG's released code, mode momentum common"
        " practice."
    )

    mode: Literal["sample", "momentum"] = "sample"
    """What is averaged: `sample`, every image's own extrema over the images of a batch, of which
    the widest batch counts; `momentum`, the extrema of whole batches, exponentially in time."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Share of the past that is kept at every batch, in mode `momentum` only."""

    def update(self, state: _Average | None, values: Tensor) -> _Average:
        """Average in one batch; see the base class."""
        if self.mode == "sample":
            # Sums in float64: float32 ends before that of its largest numbers.
            ends = torch.aminmax(values.flatten(1), dim=1)
            low, high = (v.mean(dtype=torch.float64).float() for v in ends)
            if state is None:
                return _Average(low, high, 1)
            return _Average(
                torch.minimum(state.low, low), torch.maximum(state.high, high), state.batches + 1
            )
        low, high = torch.aminmax(values)
        keep, take = self.momentum, 1 - self.momentum
        if state is None:
            return _Average(take * low, take * high, 1)
        return _Average(
            keep * state.low + take * low, keep * state.high + take * high, state.batches + 1
        )

    def range(self, state: _Average, grid: Grid) -> tuple[Tensor, Tensor]:
        """The averaged extrema, with the start-up bias of the moving average taken out."""
        del grid
        if self.mode == "sample":
            return state.low, state.high
        share = 1 - self.momentum**state.batches
        return state.low / share, state.high / share
