"""LSQ's first step, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from datafree.calibrators.lsq import LSQStart
from datafree.quant.grid import Grid

POSITIVE = torch.tensor([[0.5, 1.5], [0.0, 2.0]])
MIXED = torch.tensor([[-3.0, 1.0]])


def step(grid: Grid, *batches: torch.Tensor) -> tuple[float, float]:
    calibrator, state = LSQStart(), None
    for batch in batches:
        state = calibrator.update(state, batch)
    assert state is not None
    scale, zero = grid.parameters(*calibrator.range(state, grid))
    return scale.item(), zero.item()


@pytest.mark.parametrize("grid", [Grid(4), Grid(4, symmetric=True, signed=False)])
def test_what_is_never_negative_has_all_codes(grid: Grid) -> None:
    """The mean of 0.5, 1.5, 0 and 2 is 1."""
    assert step(grid, POSITIVE) == pytest.approx((2 / math.sqrt(15), 0), rel=1e-6)


@pytest.mark.parametrize(("grid", "zero"), [(Grid(4), 8), (Grid(4, symmetric=True), 0)])
def test_what_may_be_negative_has_half_of_them(grid: Grid, zero: int) -> None:
    """The magnitudes of all batches count alike: (4 + 4) / 6."""
    assert step(grid, POSITIVE, MIXED) == pytest.approx((2 * (8 / 6) / math.sqrt(7), zero))
    assert step(grid, MIXED, POSITIVE) == pytest.approx((2 * (8 / 6) / math.sqrt(7), zero))
