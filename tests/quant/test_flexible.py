"""Weights that are divided by what is learned before they are rounded."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from datafree.quant.flexible import DividedWeight
from datafree.quant.grid import Grid
from datafree.quant.modules import Quantizer

WEIGHT = torch.tensor([[-1.0, 0.24, 0.26, 0.9], [2.0, -0.6, 0.0, 5.0]]).view(2, 2, 2, 1)
STEP = 0.5


def on_grid(*, symmetric: bool = True) -> Quantizer:
    quantizer = Quantizer(Grid(bits=3, symmetric=symmetric))
    quantizer.scale = torch.full((2, 1, 1, 1), STEP)
    quantizer.zero_point = torch.full((2, 1, 1, 1), 0.0 if symmetric else 4.0)
    return quantizer


def divided(learned: DividedWeight) -> Tensor:
    """W / (S_2 s_3 s_4), from its definition."""
    every, out, into = (logarithm.detach().exp() for logarithm in learned.learned())
    return WEIGHT / (every * out * into)


@pytest.mark.parametrize("symmetric", [False, True])
def test_it_starts_as_the_nearest_rounding(symmetric: bool) -> None:
    expected = torch.tensor([[-1.0, 0.0, 0.5, 1.0], [1.5, -0.5, 0.0, 1.5]]).view(2, 2, 2, 1)
    learned = DividedWeight(WEIGHT, on_grid(symmetric=symmetric))
    assert torch.equal(learned(WEIGHT), expected)
    assert torch.equal(learned.hard(), expected)
    assert not learned.hard().requires_grad


def test_divisors_are_of_weights_and_of_channels_in_and_out() -> None:
    shapes = [tuple(p.shape) for p in DividedWeight(WEIGHT, on_grid()).learned()]
    assert shapes == [(2, 2, 2, 1), (2, 1, 1, 1), (1, 2, 1, 1)]


@pytest.mark.parametrize(
    ("shape", "divisors"),
    [
        ((2, 4), [(2, 1)]),
        ((2, 4, 1), [(2, 1, 1), (1, 4, 1)]),
        ((2, 1, 2, 2), [(2, 1, 1, 1), (1, 1, 1, 1)]),
    ],
)
def test_linear_layers_have_none_of_input_channels(
    shape: tuple[int, ...], divisors: list[tuple[int, ...]]
) -> None:
    quantizer = on_grid()
    fitting = (2, *[1] * (len(shape) - 1))
    quantizer.scale = quantizer.scale.view(fitting)
    quantizer.zero_point = quantizer.zero_point.view(fitting)
    learned = DividedWeight(WEIGHT.view(shape), quantizer)
    assert [tuple(p.shape) for p in learned.learned()] == [shape, *divisors]


def test_gradients_are_those_of_the_paper() -> None:
    """``dL/dS_2 = -dL/dW' W / (S_2^2 s_3 s_4)`` inside the grid, and LSQ's for the step."""
    learned = DividedWeight(WEIGHT, on_grid(), learn_step=True)
    torch.manual_seed(0)
    with torch.no_grad():
        for logarithm in learned.learned():
            logarithm.copy_(0.2 * torch.randn(logarithm.shape))
    gradient = torch.arange(1.0, 9.0).view(2, 2, 2, 1)
    (learned(WEIGHT) * gradient).sum().backward()
    ratio = divided(learned) / STEP
    inside = (ratio.round() >= -4) & (ratio.round() <= 3)
    assert not inside.all()
    every, out, into = learned.learned()
    # By a logarithm instead: times what it is the logarithm of.
    wanted = torch.where(inside, -gradient * divided(learned), torch.tensor(0.0))
    for parameter, given in (
        (every, wanted),
        (out, wanted.sum((1, 2, 3), keepdim=True)),
        (into, wanted.sum((0, 2, 3), keepdim=True)),
    ):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, given, atol=1e-5)
    slope = torch.where(inside, ratio.round() - ratio, ratio.round().clamp(-4, 3))
    assert learned.scale.grad is not None
    expected = (gradient * slope).sum((1, 2, 3), keepdim=True)
    assert torch.allclose(learned.scale.grad, expected, atol=1e-5)


def test_a_weight_may_go_further_than_to_its_neighbours_and_zero_stays() -> None:
    weight = torch.tensor([0.5, 0.0]).view(1, 2, 1, 1)
    quantizer = on_grid()
    quantizer.scale, quantizer.zero_point = torch.full((1, 1, 1, 1), STEP), torch.zeros(1, 1, 1, 1)
    learned = DividedWeight(weight, quantizer)
    optimizer = torch.optim.Adam(learned.learned(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        (learned(weight) - 1.5).square().sum().backward()
        optimizer.step()
    assert learned.hard().flatten().tolist() == [1.5, 0.0]  # two steps away, and none


def test_the_step_stays_positive_and_is_learned_where_asked() -> None:
    learned = DividedWeight(WEIGHT, on_grid(), learn_step=True)
    with torch.no_grad():
        learned.scale.fill_(-1.0)
    assert bool((learned.step() > 0).all())
    fixed = DividedWeight(WEIGHT, on_grid())
    assert "scale" not in dict(fixed.named_parameters())
    assert "smallest" not in fixed.state_dict()
