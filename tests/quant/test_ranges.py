from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from datafree.errors import ConfigError, ModelError
from datafree.quant.grid import Grid, fake_quantize
from datafree.quant.modules import Quantizer
from datafree.quant.ranges import lsq_range, mse_range

KINDS = ((False, True), (True, True), (True, False))
GRIDS = [Grid(bits, *kind) for bits, kind in itertools.product((2, 3, 4, 8), KINDS)]
ANY_GRID = st.builds(Grid, st.integers(2, 8), st.booleans(), st.booleans())
properties = settings(deadline=None, max_examples=40, derandomize=True)


def draw(*shape: int, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.laplace(size=shape), dtype=torch.float32)


def error(values: NDArray[np.float64], grid: Grid, low: float, high: float, power: float) -> float:
    """Sum of ``|x - Q(x)|^power`` from B.1, in float64."""
    low, high, steps = min(low, 0.0), max(high, 0.0), 2**grid.bits - 1
    bottom, top, zero = 0, steps, 0.0
    if grid.symmetric and grid.signed:
        top = 2 ** (grid.bits - 1) - 1
        bottom, scale = -top - 1, max(-low, high) / top
    elif grid.symmetric:
        scale = high / steps
    else:
        scale = (high - low) / steps
    scale = max(scale, 1e-8)
    if not grid.symmetric:
        zero = float(np.rint(-low / scale))
    total = 0.0
    for value in values:
        code = min(max(np.rint(value / scale) + zero, bottom), top)
        total += abs((code - zero) * scale - value) ** power
    return total


def assert_best(row: Tensor, grid: Grid, low: float, high: float, power: float, count: int) -> None:
    """No ratio has a smaller error than ``[low, high]``, but for what float32 cannot tell apart."""
    values = row.double().numpy()
    smallest, largest = min(values.min(), 0.0), max(values.max(), 0.0)
    ratios = [(count - i) / count for i in range(count)]
    errors = [error(values, grid, r * smallest, r * largest, power) for r in ratios]
    assert error(values, grid, low, high, power) <= min(errors) * 1.001 + 1e-12
    found = max(low / smallest if smallest else 0, high / largest if largest else 0)
    assert min(abs(found - r) for r in ratios) < 1e-5
    assert low == pytest.approx(found * smallest, rel=1e-5)
    assert high == pytest.approx(found * largest, rel=1e-5)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_channel_by_brute_force(grid: Grid) -> None:
    values = draw(3, 5, 4)
    low, high = mse_range(values, grid, axis=0, candidates=50)
    assert low.shape == high.shape == (3, 1, 1)
    for row, bottom, top in zip(values.flatten(1), low.flatten(), high.flatten(), strict=True):
        assert_best(row, grid, bottom.item(), top.item(), 2.4, 50)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_whole_tensor_by_brute_force(grid: Grid) -> None:
    values = draw(6, 9)
    low, high = mse_range(values, grid)
    assert low.shape == high.shape == ()
    assert_best(values.flatten(), grid, low.item(), high.item(), 2.4, 100)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.5])
def test_powers(power: float) -> None:
    values = draw(80, seed=4)
    low, high = mse_range(values, Grid(3), power=power)
    assert_best(values, Grid(3), low.item(), high.item(), power, 100)


def test_an_outlier_by_hand() -> None:
    """Codes -2..1 of a 2-bit signed grid: T is the step. 100 values at 0.5 outweigh one at 1.

    With T = 0.5 they are exact and the one costs 0.25; 0.51 costs 100 * 0.01^2 + 0.49^2 = 0.2501.
    """
    values = torch.cat((torch.full((100,), 0.5), torch.ones(1)))
    low, high = mse_range(values, Grid(2, symmetric=True), power=2)
    assert (low.item(), high.item()) == (0, 0.5)


def test_axes_are_counted_from_both_ends_and_need_not_be_the_first() -> None:
    values = draw(4, 3, 5)
    low, high = mse_range(values, Grid(3), axis=1)
    assert low.shape == high.shape == (1, 3, 1)
    for found in (
        mse_range(values, Grid(3), axis=-2),
        [v.movedim(0, 1) for v in mse_range(values.movedim(1, 0), Grid(3), axis=0)],
    ):
        assert torch.equal(low, found[0])
        assert torch.equal(high, found[1])


def test_channels_do_not_touch_each_other() -> None:
    values = draw(4, 30)
    together = mse_range(values, Grid(3), axis=0)
    alone = [mse_range(row, Grid(3)) for row in values]
    assert torch.equal(together[0].flatten(), torch.stack([low for low, _ in alone]))
    assert torch.equal(together[1].flatten(), torch.stack([high for _, high in alone]))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_channel_of_zeros_keeps_the_range_of_nothing(grid: Grid) -> None:
    values = draw(3, 8)
    values[1] = 0
    low, high = mse_range(values, grid, axis=0)
    assert low[1] == high[1] == 0
    scale, zero_point = grid.parameters(low, high)
    assert torch.equal(fake_quantize(values, scale, zero_point, grid)[1], values[1])


@pytest.mark.parametrize("grid", [Grid(4), Grid(4, symmetric=True)], ids=str)
def test_values_on_the_grid_keep_the_widest_range(grid: Grid) -> None:
    """Many ranges reach no error where all values are zero or the extreme: the widest is kept."""
    values = torch.tensor([[0.0, 7.0, 0.0], [0.0, 3.0, 3.0]])
    low, high = mse_range(values, grid, axis=0)
    assert low.flatten().tolist() == [0, 0]
    assert high.flatten().tolist() == [7, 3]


def test_the_range_fits_quantizer_and_one_candidate_is_its_own_rule() -> None:
    values = draw(4, 3, 2, 2)
    for axis in (0, None):
        fitted, searched = (Quantizer(Grid(4), axis=axis) for _ in range(2))
        fitted.fit(values)
        searched.set_range(*mse_range(values, Grid(4), axis, candidates=1))
        assert torch.equal(fitted.scale, searched.scale)
        assert torch.equal(fitted.zero_point, searched.zero_point)


def test_parameters_are_read_not_changed() -> None:
    weight = torch.nn.Parameter(draw(3, 7))
    before = weight.detach().clone()
    low, high = mse_range(weight, Grid(4), axis=0)
    assert not low.requires_grad
    assert not high.requires_grad
    assert torch.equal(weight.detach(), before)


@properties
@given(
    ANY_GRID,
    st.lists(st.floats(-100, 100, width=32, allow_subnormal=False), min_size=1, max_size=12),
    st.sampled_from([1.0, 2.0, 2.4]),
)
def test_never_worse_than_min_max(grid: Grid, values: list[float], power: float) -> None:
    low, high = mse_range(torch.tensor(values), grid, power=power)
    assert min(0, *values) <= low.item() <= 0 <= high.item() <= max(0, *values)
    array = np.array(values, np.float64)
    mine = error(array, grid, low.item(), high.item(), power)
    # Float32 rounds a ratio that lies on the border of two codes either way.
    slack = 1e-4 * max(map(abs, values)) ** power
    assert mine <= error(array, grid, min(values), max(values), power) * 1.001 + slack


@pytest.mark.parametrize(("power", "candidates"), [(0, 100), (-1, 100), (2, 0)])
def test_options_that_make_no_sense(power: float, candidates: int) -> None:
    with pytest.raises(ConfigError, match="above 0 and candidates at least 1"):
        mse_range(torch.ones(3), Grid(4), power=power, candidates=candidates)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(value: float) -> None:
    with pytest.raises(ModelError, match="NaN or infinity"):
        mse_range(torch.tensor([[1.0, 2.0], [0.0, value]]), Grid(4), axis=0)


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_lsq_s_first_step(bits: int, symmetric: bool, axis: int | None) -> None:
    """``2 mean|w| / sqrt(2^(b-1) - 1)``, Esser et al., section 2.1; zero in the middle."""
    values = torch.randn(3, 4, 5)
    grid = Grid(bits, symmetric=symmetric)
    scale, zero = grid.parameters(*lsq_range(values, grid, axis))
    rows = [values] if axis is None else list(values)
    expected = [2 * row.abs().mean().item() / math.sqrt(2 ** (bits - 1) - 1) for row in rows]
    assert scale.flatten().tolist() == pytest.approx(expected, rel=1e-5)
    assert set(zero.flatten().tolist()) == {0.0 if symmetric else 2.0 ** (bits - 1)}
    assert scale.shape == (() if axis is None else (3, 1, 1))
