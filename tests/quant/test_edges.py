"""Ties, ends and halves: what decides where two are equal."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from datafree.errors import ModelError
from datafree.quant.grid import Grid
from datafree.quant.learned import SoftRounding
from datafree.quant.modules import ActivationQuantizer, ChannelCopies, Quantizer, add_to_bias
from datafree.quant.ranges import mse_range


def test_among_ranges_of_equal_error_the_widest_wins() -> None:
    """Errors below 1 to the power 300 are all 0 in float32."""
    values = torch.linspace(-0.5, 0.8, 40).view(2, 20)
    low, high = mse_range(values, Grid(4), 0, power=300.0)
    assert high.flatten().tolist() == [max(row.max().item(), 0.0) for row in values]
    assert low.flatten().tolist() == [min(row.min().item(), 0.0) for row in values]


def test_a_logit_of_exactly_0_rounds_up() -> None:
    """V is 0 where the weight lies in the middle between two codes."""
    quantizer = Quantizer(Grid(4, symmetric=True))
    quantizer.set_range(torch.tensor(-7.0), torch.tensor(7.0))
    variables = SoftRounding(torch.tensor([1.5, 1.4, 1.6]), quantizer)
    with torch.no_grad():
        variables.logits[0] = 0.0
    assert variables.hard().tolist() == [2.0, 1.0, 2.0]


def test_a_quantizer_with_one_scale_unknown_has_no_range() -> None:
    quantizer = Quantizer(Grid(4), axis=0)
    assert not quantizer.has_range
    quantizer.set_range(torch.zeros(2, 1), torch.ones(2, 1))
    assert quantizer.has_range
    quantizer.scale[1] = float("nan")
    assert not quantizer.has_range


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 1])
def test_one_weight_that_is_not_finite_is_refused(value: float, place: int) -> None:
    weights = torch.ones(2, 3)
    weights[place, 1] = value
    with pytest.raises(ModelError, match="weights hold NaN or infinity"):
        mse_range(weights, Grid(4), 0)


def test_zero_points_that_have_to_be_even_are_and_stay_codes() -> None:
    grid = Grid(3, even=True)
    given = torch.tensor([-1.0, 0.9, 1.1, 3.2, 6.6, 7.0, 9.0])
    assert grid.rounded_zero_point(given).tolist() == [0, 0, 2, 4, 6, 6, 6]


def test_a_range_that_an_operator_prescribes_is_not_moved() -> None:
    quantizer = ActivationQuantizer(Grid(8), fixed=(1 / 256, 3))
    quantizer.set_range(torch.tensor(-5.0), torch.tensor(9.0))
    assert (quantizer.scale.item(), quantizer.zero_point.item()) == (1 / 256, 3)


def test_channels_are_copied_by_their_index() -> None:
    values = torch.arange(12.0).view(1, 3, 4)
    assert ChannelCopies(torch.tensor([2, 0, 2]))(values).equal(values[:, [2, 0, 2]])


def test_a_bias_is_moved_and_made_where_there_is_none() -> None:
    shared = nn.Parameter(torch.tensor([1.0, 2.0]))
    with_bias, without = nn.Linear(3, 2), nn.Linear(3, 2, bias=False)
    with_bias.bias = shared
    for layer, expected in ((with_bias, [1.5, 1.0]), (without, [0.5, -1.0])):
        add_to_bias(layer, torch.tensor([0.5, -1.0], dtype=torch.float64))
        assert layer.bias is not None
        assert layer.bias.tolist() == expected
    assert shared.tolist() == [1.0, 2.0]
