"""Ties, ends and halves: what decides where two are equal."""

from __future__ import annotations

import pytest
import torch

from datafree.errors import ModelError
from datafree.quant.grid import Grid
from datafree.quant.learned import SoftRounding
from datafree.quant.modules import Quantizer
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
