"""Percentiles of all values (algorithms B.2.3)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from datafree.calibrators._histogram import Histogram, extend
from datafree.calibrators.base import Calibrator
from datafree.quant.grid import Grid


class Percentile(Calibrator):
    """Leave out the same small share of values at each end: ``[P_(100 - p)(x), P_p(x)]``.

    ``P_q`` is the value below which q percent of all values lie.
    """

    citation: ClassVar[str] = "Common practice; no paper of its own."

    percentile: float = Field(default=99.99, gt=50, le=100)
    """Share p of the values below the upper end, in percent; ``100 - p`` lie below the lower end.
    DSG's code uses 99.999."""

    def update(self, state: Histogram | None, values: Tensor) -> Histogram:
        """Count the values; see the base class."""
        return extend(state, values)

    def range(self, state: Histogram, grid: Grid) -> tuple[Tensor, Tensor]:
        """The two percentiles, exact to a 4096th of the range."""
        del grid
        share = self.percentile / 100
        return torch.tensor(state.quantile(1 - share)), torch.tensor(state.quantile(share))
