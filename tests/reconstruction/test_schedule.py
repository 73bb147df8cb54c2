from __future__ import annotations

import math

import pytest

from datafree.progress.deadline import NEVER, Deadline
from datafree.quant.grid import Grid
from datafree.reconstruction._schedule import Penalty, Stage, falling, fractions
from datafree.reconstruction.brecq import BRECQ


def test_the_exponent_of_the_penalty() -> None:
    penalty = Penalty(weight=0.01, warmup=0.2, start=20, end=2)
    assert penalty.beta(0.0) is None
    assert penalty.beta(0.19) is None
    assert penalty.beta(0.2) == pytest.approx(20)
    assert penalty.beta(0.6) == pytest.approx(11)
    assert penalty.beta(1.0) == pytest.approx(2)
    assert Penalty(0.0, 0.2, 20, 2).beta(0.5) is None
    last = Penalty(1.0, 1.0, 20, 2).beta(1.0)
    assert last is not None
    assert math.isfinite(last)


def test_rates_of_step_sizes_grow_at_most_tenfold() -> None:
    stage = Stage(100, rounding_lr=0.001, weight_step_lr=0.02, activation_lr=0.3, drop=0.5)
    assert stage.faster(1) == stage
    assert stage.faster(4) == Stage(100, 0.004, 0.02, activation_lr=0.3, drop=0.5, growth=4)
    faster = stage.faster(50)
    rates = (faster.rounding_lr, faster.weight_step_lr, faster.activation_lr, faster.growth)
    assert rates == pytest.approx((0.05, 0.02, 0.3, 10))
    assert faster.step_rate(0.02, 100.0, Grid(2, symmetric=True)) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("bits", "step", "expected"),
    [
        (2, 0.3, 1e-3),  # 1e-3 of 0.3 three times is 3e-3: less than a step
        (8, 0.51, 1e-3),
        (8, 0.051, 2e-4),  # 255 of 2e-4 are one step
        (8, 0.00255, 1e-4),  # never less than the published one
    ],
)
def test_a_faster_rate_moves_the_end_of_a_range_by_one_step_at_most(
    bits: int, step: float, expected: float
) -> None:
    faster = Stage(100).faster(10)
    grid = Grid(bits, symmetric=False)
    assert faster.step_rate(1e-4, step, grid) == pytest.approx(expected)
    assert Stage(100).faster(0.5).step_rate(1e-4, step, grid) == pytest.approx(5e-5)


def test_brecq_shares_its_steps_as_published() -> None:
    """20,000 for the weights and 5,000 for activations, or as many fewer of both."""
    for chosen, expected in (
        (BRECQ(), [20_000, 5_000]),
        (BRECQ(iterations=500), [500, 125]),
        (BRECQ(iterations=2), [2, 1]),
        (BRECQ(iterations=500, activation_iterations=7), [500, 7]),
    ):
        assert [stage.iterations for stage in chosen.stages()] == expected


def test_the_way_is_that_of_the_steps_or_of_the_time() -> None:
    assert list(fractions(4, NEVER)) == [0, 0.25, 0.5, 0.75]
    assert list(fractions(3, Deadline(0.0))) == []
    short = list(fractions(10**9, Deadline.within(0.05)))
    assert short == sorted(short)
    assert 0.9 < short[-1] < 1
    assert [falling(share) for share in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
