"""Ties, ends and halves: what decides where two are equal."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from datafree.errors import ModelError
from datafree.quant import ranges
from datafree.quant.grid import Grid, smallest_step
from datafree.quant.learned import LearnedStep, SoftRounding, chosen
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


@pytest.mark.parametrize(
    ("grid", "qmin"),
    [
        (Grid(4, symmetric=True, narrow=True), -7),
        (Grid(4, narrow=True), 0),
        (Grid(4, symmetric=True, signed=False, narrow=True), 0),
    ],
)
def test_only_signed_symmetric_codes_are_narrowed(grid: Grid, qmin: int) -> None:
    assert grid.qmin == qmin


def test_a_range_wider_than_float32_has_the_scale_of_its_width() -> None:
    largest = 0.98 * torch.finfo(torch.float32).max
    scale, zero = Grid(8).parameters(torch.tensor(-largest), torch.tensor(largest))
    assert float(scale) == pytest.approx(2 * largest / 255, rel=1e-6)
    assert float(zero) == 128  # half to even of 127.5


def test_the_largest_power_of_two_is_a_scale_and_none_reaches_beyond_float32() -> None:
    grid = Grid(8, symmetric=True, power_of_two=True)
    assert float(grid.rounded_scale(torch.tensor(3e38))) == 2.0**127
    scale, _ = grid.parameters(torch.tensor(-3.3e38), torch.tensor(3.3e38))
    assert float(scale) == 2.0**120  # 128 steps of 2^121 would be 2^128


@pytest.mark.parametrize(("start", "least"), [(1e-6, 1e-9), (1.0, 1e-8), (1e-37, 1.1754944e-38)])
def test_the_smallest_step_is_a_thousandth_of_a_tiny_start(start: float, least: float) -> None:
    assert float(smallest_step(torch.tensor(start))) == pytest.approx(least, rel=1e-6, abs=0)


def test_learned_parts_keep_what_is_learned_and_no_limits() -> None:
    quantizer = Quantizer(Grid(4, symmetric=True))
    quantizer.set_range(torch.tensor(-7.0), torch.tensor(7.0))
    soft = SoftRounding(torch.tensor([1.5]), quantizer)
    assert set(soft.state_dict()) == {"logits", "base", "zero_point", "scale"}
    random = torch.Generator().manual_seed(0)
    activations = ActivationQuantizer(Grid(4))
    activations.set_range(torch.tensor(-1.0), torch.tensor(1.0))
    assert set(LearnedStep(activations, 0.0, random).state_dict()) == {"scale", "zero_point"}


@pytest.mark.parametrize("share", [0.1, 0.5, 0.75])
def test_elements_are_chosen_as_often_as_asked(share: float) -> None:
    mask = chosen(torch.empty(200_000), share, torch.Generator().manual_seed(0))
    assert float(mask.mean()) == pytest.approx(share, abs=0.005)
    assert set(mask.unique().tolist()) == {0.0, 1.0}


def test_a_bias_that_was_added_to_is_not_trained() -> None:
    layer = nn.Conv2d(2, 3, 1)
    add_to_bias(layer, torch.ones(3, dtype=torch.float64))
    assert layer.bias is not None and not layer.bias.requires_grad


def test_a_widened_quantizer_covers_so_many_times_its_range() -> None:
    quantizer = ActivationQuantizer(Grid(8))
    quantizer.widened = 4.0
    quantizer.set_range(torch.tensor(-1.0), torch.tensor(3.0))
    assert float(quantizer.scale) == pytest.approx(16 / 255, rel=1e-6, abs=0)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("exponent", [-90, 90])
def test_a_range_is_found_alike_at_any_size_and_on_either_side(sign: int, exponent: int) -> None:
    values = sign * torch.rand(2, 200, generator=torch.Generator().manual_seed(0)).square()
    expected = mse_range(values, Grid(3), 0)
    found = mse_range(values * 2.0**exponent, Grid(3), 0)
    assert any(float(end.abs().max()) for end in expected)
    for end, wanted in zip(found, expected, strict=True):
        assert torch.equal(end, wanted * 2.0**exponent)


def test_rows_of_an_ordinary_size_are_not_scaled() -> None:
    reach = torch.tensor([0.0, 2e-6, 1.0, 9e5, 1e-6, 1e6, 3e38])
    unit = ranges._unit(reach)  # pyright: ignore[reportPrivateUsage]
    assert unit.tolist() == [1, 1, 1, 1, 2.0**-19, 2.0**20, 2.0**127]
