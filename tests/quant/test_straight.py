"""Weights that are learned straight through their rounding."""

from __future__ import annotations

import pytest
import torch

from datafree.quant.grid import Grid
from datafree.quant.modules import Quantizer
from datafree.quant.straight import StraightWeight

WEIGHT = torch.tensor([[-1.0, 0.24, 0.26, 0.9], [2.0, -0.6, 0.1, 5.0]])


def on_grid(*, symmetric: bool) -> Quantizer:
    grid = Grid(bits=3, symmetric=symmetric)
    quantizer = Quantizer(grid)
    zero = 0.0 if symmetric else 4.0
    quantizer.scale = torch.full((2, 1), 0.5)
    quantizer.zero_point = torch.full((2, 1), zero)
    return quantizer


@pytest.mark.parametrize("symmetric", [False, True])
def test_it_starts_as_the_nearest_rounding(symmetric: bool) -> None:
    quantizer = on_grid(symmetric=symmetric)
    expected = torch.tensor([[-1.0, 0.0, 0.5, 1.0], [1.5, -0.5, 0.0, 1.5]])  # codes end at 3
    learned = StraightWeight(WEIGHT, quantizer)
    assert torch.equal(learned(WEIGHT), expected)
    assert torch.equal(learned.hard(), expected)
    assert not learned.hard().requires_grad


def test_gradients_pass_inside_the_grid_and_the_step_has_that_of_lsq() -> None:
    learned = StraightWeight(WEIGHT, on_grid(symmetric=True), learn_step=True)
    gradient = torch.arange(1.0, 9.0).reshape(2, 4)
    (learned(WEIGHT) * gradient).sum().backward()
    inside = torch.tensor([[1.0, 1, 1, 1], [0, 1, 1, 0]])
    assert learned.weight.grad is not None
    # The weight counts first steps of 0.5.
    assert torch.allclose(learned.weight.grad, 0.5 * gradient * inside)
    ratio = WEIGHT / 0.5
    slopes = torch.where(inside.bool(), ratio.round() - ratio, torch.tensor(3.0))
    assert learned.scale.grad is not None
    wanted = (gradient * slopes).sum(1, keepdim=True)
    assert torch.allclose(learned.scale.grad, wanted, atol=1e-5)


def test_a_weight_may_go_further_than_to_its_neighbours() -> None:
    learned = StraightWeight(torch.zeros(1, 1), on_grid(symmetric=True))
    optimizer = torch.optim.Adam(learned.learned(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        (learned(torch.zeros(1, 1)) - 1.5).square().sum().backward()
        optimizer.step()
    assert float(learned.hard()[0]) == 1.5  # three steps away


def test_the_step_stays_positive() -> None:
    learned = StraightWeight(WEIGHT, on_grid(symmetric=True), learn_step=True)
    with torch.no_grad():
        learned.scale.fill_(-1.0)
    assert bool((learned.step() > 0).all())


@pytest.mark.parametrize(
    ("options", "learned"), [({}, {"weight"}), ({"learn_step": True}, {"weight", "scale"})]
)
def test_the_step_is_learned_where_asked_and_its_bound_is_not_kept(
    options: dict[str, bool], learned: set[str]
) -> None:
    made = StraightWeight(WEIGHT, on_grid(symmetric=True), **options)
    assert {name for name, _ in made.named_parameters()} == learned
    assert set(made.state_dict()) == {"weight", "first", "scale", "zero_point"}
