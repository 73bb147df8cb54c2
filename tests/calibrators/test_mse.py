from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from datafree.calibrators.mse import MSE
from datafree.quant.grid import Grid

GRIDS = [
    Grid(bits, symmetric, signed)
    for bits, (symmetric, signed) in itertools.product(
        (2, 3, 4, 8), ((False, True), (True, True), (True, False))
    )
]


def error(
    values: NDArray[np.float64], grid: Grid, low: float, high: float, power: float = 2
) -> float:
    """Sum of errors of all values, from B.1."""
    low, high, steps = min(low, 0.0), max(high, 0.0), 2**grid.bits - 1
    if grid.symmetric and grid.signed:
        steps = 2 ** (grid.bits - 1) - 1
        scale, zero, bottom, top = max(-low, high) / steps, 0.0, -steps - 1, steps
    elif grid.symmetric:
        scale, zero, bottom, top = high / steps, 0.0, 0, steps
    else:
        scale = (high - low) / steps
        zero, bottom, top = np.rint(-low / scale), 0, steps
    rounded = (np.clip(np.rint(values / scale) + zero, bottom, top) - zero) * scale
    return float((np.abs(rounded - values) ** power).sum())


def draw(kind: str) -> NDArray[np.float64]:
    rng = np.random.default_rng(3)
    values = rng.laplace(size=6000)
    if kind == "positive":
        values = np.maximum(values, 0)
    if kind == "skewed":
        values = np.where(values < 0, values / 4, values)
    return values.astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("kind", ["both", "positive", "skewed"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_as_good_as_a_search_on_the_values_themselves(kind: str, grid: Grid) -> None:
    values = draw(kind)
    calibrator, state = MSE(), None
    for part in np.array_split(values, 3):
        state = calibrator.update(state, torch.tensor(part, dtype=torch.float32).view(-1, 2))
    assert state is not None
    low, high = (v.item() for v in calibrator.range(state, grid))
    ratios = [1 - 0.01 * i for i in range(80)]
    tried = [error(values, grid, r * values.min(), r * values.max()) for r in ratios]
    assert error(values, grid, low, high) <= min(tried) * 1.01
    assert error(values, grid, low, high) <= tried[0] * 1.0001


def test_few_bits_clip_more_than_many() -> None:
    state = MSE().update(None, torch.tensor(draw("both"), dtype=torch.float32).view(-1, 2))
    highs = [MSE().range(state, Grid(bits))[1].item() for bits in (2, 4, 8)]
    assert highs[0] < highs[1] < highs[2] <= draw("both").max() * 1.0001


def test_both_ends_shrink_by_one_ratio() -> None:
    values = draw("skewed")
    state = MSE().update(None, torch.tensor(values, dtype=torch.float32).view(-1, 2))
    low, high = (v.item() for v in MSE().range(state, Grid(3)))
    assert low / values.min() == pytest.approx(high / values.max(), rel=1e-4)
    assert low / values.min() < 0.9


def test_never_negative_values_keep_zero() -> None:
    state = MSE().update(None, torch.tensor(draw("positive"), dtype=torch.float32).view(-1, 2))
    assert MSE().range(state, Grid(4))[0].item() == 0


def test_one_candidate_is_min_max() -> None:
    values = torch.tensor([[-1.0, 0.1], [0.2, 7.0]])
    calibrator = MSE(candidates=1)
    low, high = calibrator.range(calibrator.update(None, values), Grid(2))
    assert (low.item(), high.item()) == (-1, 7)


def test_power_weighs_outliers() -> None:
    values = draw("both")
    state = MSE().update(None, torch.tensor(values, dtype=torch.float32).view(-1, 2))
    low = {p: MSE(power=p).range(state, Grid(4))[1].item() for p in (1.0, 4.0)}
    assert low[1.0] < low[4.0]
    for power, high in low.items():
        ratio = high / values.max()
        mine = error(values, Grid(4), ratio * values.min(), high, power)
        best = min(
            error(values, Grid(4), r * values.min(), r * values.max(), power)
            for r in np.arange(0.21, 1.001, 0.01)
        )
        assert mine <= best * 1.01
