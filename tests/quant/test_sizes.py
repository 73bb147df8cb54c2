"""Grids, searches and learned steps at any size of values."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from datafree.quant.grid import Grid, fake_quantize, smallest_step
from datafree.quant.learned import LearnedStep, SoftRounding
from datafree.quant.modules import ActivationQuantizer, Quantizer
from datafree.quant.ranges import mse_range
from datafree.quant.trained import LSQ, PACT

TINY, LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
GRIDS = [
    Grid(bits, symmetric=symmetric, signed=signed, power_of_two=power)
    for bits, (symmetric, signed), power in itertools.product(
        (2, 4, 8), ((False, True), (True, True), (True, False)), (False, True)
    )
]
ANY = st.floats(allow_nan=False, width=32)


@given(st.sampled_from(GRIDS), ANY, ANY)
@settings(deadline=None, max_examples=150, derandomize=True)
def test_every_scale_is_a_normal_number_and_every_code_stands_for_a_finite_one(
    grid: Grid, one: float, other: float
) -> None:
    low, high = torch.tensor(min(one, other)), torch.tensor(max(one, other))
    scale, zero_point = grid.parameters(low, high)
    assert TINY <= scale < math.inf
    assert grid.qmin <= zero_point <= grid.qmax
    for value in (low, high):
        assert fake_quantize(value, scale, zero_point, grid).isfinite()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-9, 1.0, 1e20, 3e37])
def test_a_range_of_any_size_is_covered_in_its_own_steps(grid: Grid, size: float) -> None:
    low, high = torch.tensor(-0.5 * size), torch.tensor(size)
    scale, zero_point = grid.parameters(low, high)
    values = torch.linspace(-0.5 if grid.qmin or not grid.symmetric else 0.0, 1.0, 99) * size
    rounded = fake_quantize(values, scale, zero_point, grid)
    # Zero points are whole numbers: an end may be off by half a step more.
    assert float((rounded - values).abs().max()) <= float(scale) * 1.0001
    steps = (1.5 if not grid.symmetric else 1.0) * size / grid.qmax
    assert float(scale) <= steps * (2.0 if grid.power_of_two else 1.0) * 1.001


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_range_of_no_width_has_a_scale_all_the_same(grid: Grid) -> None:
    scale, _ = grid.parameters(torch.zeros(2), torch.zeros(2))
    assert scale.tolist() == pytest.approx([2.0**-26 if grid.power_of_two else 1e-8] * 2)


def weights(seed: int = 0) -> Tensor:
    return torch.randn(3, 40, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("power", [-120, -60, -21, 21, 60, 120])
@pytest.mark.parametrize("exponent", [2.0, 2.4])
def test_the_best_range_is_found_at_any_size(power: int, exponent: float) -> None:
    factor = 2.0**power
    expected = mse_range(weights(), Grid(3, symmetric=True), 0, power=exponent)
    found = mse_range(weights() * factor, Grid(3, symmetric=True), 0, power=exponent)
    narrowed = expected[1].flatten() < weights().abs().amax(1) - 1e-3
    assert narrowed.any()
    for end, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(end / factor, wanted, rtol=0.02, atol=0)


def test_opposite_weights_at_the_end_of_float32_are_finite() -> None:
    values = torch.tensor([[3e38, 3e38, -1e38]])
    low, high = mse_range(values, Grid(8), 0)
    assert low.isfinite().all()
    assert high.isfinite().all()


@pytest.mark.parametrize("start", [1e-20, 1e-9, 1e-3])
def test_learned_steps_may_be_tiny_where_they_start_tiny(start: float) -> None:
    quantizer = ActivationQuantizer(Grid(4))
    quantizer.set_range(torch.tensor(0.0), torch.tensor(15 * start))
    assert quantizer.scale.item() == pytest.approx(start)
    random = torch.Generator()
    steps = [
        LearnedStep(quantizer, 0.0, random).step(),
        SoftRounding(torch.tensor([start]), quantizer).step(),
        LSQ(quantizer).step(),
        LSQ(quantizer, learn="clip").step(),
        PACT(quantizer).step(),
    ]
    for step in steps:
        assert step.item() == pytest.approx(start, rel=1e-5)


def test_a_step_that_was_learned_below_its_floor_comes_back_to_it() -> None:
    quantizer = Quantizer(Grid(4))
    quantizer.set_range(torch.tensor(0.0), torch.tensor(15e-9))
    learned = LSQ(quantizer)
    with torch.no_grad():
        learned.scale.fill_(-1.0)
    assert learned.step().item() == pytest.approx(1e-12)
    assert smallest_step(torch.tensor([1e-3, 1e-9, 0.0])).tolist() == pytest.approx(
        [1e-8, 1e-12, TINY]
    )
