from __future__ import annotations

import pytest
import torch
from torch import Tensor

from datafree.calibrators.bounded_mse import BoundedMSE
from datafree.calibrators.mse import MSE
from datafree.config import build
from datafree.errors import ConfigError
from datafree.quant.grid import Grid

GRIDS = [Grid(2), Grid(4), Grid(4, symmetric=True), Grid(4, symmetric=True, signed=False)]


def draw(seed: int, outlier: float = 0) -> Tensor:
    values = torch.randn(4000, 1, generator=torch.Generator().manual_seed(seed))
    values[0] = outlier
    return values


def range_of(calibrator: BoundedMSE | MSE, grid: Grid, *batches: Tensor) -> tuple[float, float]:
    state = None
    for batch in batches:
        state = calibrator.update(state, batch)  # pyright: ignore[reportArgumentType]
    assert state is not None
    low, high = calibrator.range(state, grid)  # pyright: ignore[reportArgumentType]
    return low.item(), high.item()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("bound", [0, 0.3])
def test_the_mean_of_the_batches_best_ranges(grid: Grid, bound: float) -> None:
    """Ratios of normal values lie above 0.3: the bound does nothing."""
    batches = [draw(0), draw(1) * 2, draw(2).abs()]
    alone = [range_of(MSE(candidates=100), grid, batch) for batch in batches]
    expected = tuple(sum(ends) / 3 for ends in zip(*alone, strict=True))
    assert range_of(BoundedMSE(lower_bound=bound), grid, *batches) == pytest.approx(expected)


@pytest.mark.parametrize("relu", [False, True])
def test_an_outlier_leaves_the_bound(relu: bool) -> None:
    """At 2 bits, normal values with an outlier at 20 are clipped near 2; 0.3 of 20 is 6."""
    values, grid = draw(0, 20.0), Grid(2, symmetric=True)
    values = values.relu() if relu else values
    assert range_of(MSE(candidates=100), grid, values)[1] < 4
    low, high = range_of(BoundedMSE(), grid, values)
    assert high == pytest.approx(6)
    assert low == pytest.approx(0.3 * min(values.min().item(), 0))
    assert range_of(BoundedMSE(lower_bound=0.5), grid, values)[1] == pytest.approx(10)


def test_bounded_before_averaging() -> None:
    grid = Grid(2, symmetric=True)
    high = range_of(BoundedMSE(), grid, draw(0, 20.0), draw(0, 30.0))[1]
    assert high == pytest.approx((6 + 9) / 2)


def test_one_is_min_max_of_each_batch() -> None:
    batches = [torch.tensor([[-1.0], [3.0]]), torch.tensor([[1.0], [7.0]])]
    assert range_of(BoundedMSE(lower_bound=1), Grid(2), *batches) == (-0.5, 5)


@pytest.mark.parametrize("bound", [-0.1, 1.1])
def test_out_of_range(bound: float) -> None:
    with pytest.raises(ConfigError, match="lower_bound"):
        build(BoundedMSE, {"lower_bound": bound}, "bounded_mse")
