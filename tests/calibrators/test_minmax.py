from __future__ import annotations

import pytest
import torch

from datafree.calibrators.minmax import MinMax
from datafree.quant.grid import Grid


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        ([[2.0, 5.0]], (0, 5)),
        ([[-4.0, -1.0]], (-4, 0)),
        ([[1.0, 2.0], [-3.0, 0.5], [-1.0, 4.0]], (-3, 4)),
        ([[-1.0, 9.0], [0.0, 0.0]], (-1, 9)),
    ],
)
def test_running_extrema_start_at_zero(
    batches: list[list[float]], expected: tuple[float, float]
) -> None:
    calibrator, state = MinMax(), None
    for batch in batches:
        state = calibrator.update(state, torch.tensor(batch).view(-1, 1))
    assert state is not None
    low, high = calibrator.range(state, Grid(4))
    assert (low.item(), high.item()) == expected
