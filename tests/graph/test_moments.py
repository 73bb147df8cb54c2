from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from datafree.graph import moments as rules
from datafree.graph.moments import Moments
from networks import SPEC

CPU = torch.device("cpu")


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(mean: list[float], std: list[float], deviations: float = 6) -> Moments:
    return rules.normal(double(*mean), double(*std), deviations)


def close(actual: Tensor, *expected: float, tolerance: float = 1e-9) -> None:
    wanted = double(*expected)
    torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=tolerance, equal_nan=True)


def test_pixels_cover_0_to_255() -> None:
    found = rules.pixels(SPEC, CPU)
    close(found.low, -0.4 / 0.2, -0.5 / 0.25, -0.6 / 0.3)
    close(found.high, 0.6 / 0.2, 0.5 / 0.25, 0.4 / 0.3)
    assert found.mean.isnan().all()


def test_unknown_has_no_range_but_one_mean_may() -> None:
    assert not rules.unknown(CPU).has_range
    assert not rules.only_mean(double(1, 2)).has_range
    assert rules.only_range(double(-1), double(1)).has_range


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_response_is_what_a_convolution_returns_inside(groups: int) -> None:
    layer = nn.Conv2d(6, 12, 3, groups=groups, bias=False).double()
    inputs = torch.randn(6, dtype=torch.float64)
    expected = layer(inputs.view(1, 6, 1, 1).expand(1, 6, 3, 3)).flatten()
    torch.testing.assert_close(rules.response(layer.weight, groups, inputs), expected)
    same = layer(torch.full((1, 6, 3, 3), 2.0, dtype=torch.float64)).flatten()
    torch.testing.assert_close(rules.response(layer.weight, groups, double(2)), same)


def test_rectified_standard_normal() -> None:
    """Mean 1/sqrt(2 pi), second moment 1/2."""
    found = rules.activated(nn.ReLU(), normal([0], [1]))
    mean = 1 / math.sqrt(2 * math.pi)
    close(found.mean, mean)
    close(found.std, math.sqrt(0.5 - mean**2), tolerance=1e-4)
    close(found.low, 0)
    close(found.high, 6)


@given(
    mean=st.floats(-5, 9),
    std=st.floats(0.01, 4),
    name=st.sampled_from(["ReLU6", "SiLU", "GELU", "Hardswish", "PReLU", "LeakyReLU", "Tanh"]),
)
@settings(max_examples=40, deadline=None)
def test_activations_of_many_drawn_normals(mean: float, std: float, name: str) -> None:
    """Against quantiles of the normal at the middle of equally likely parts."""
    activation = getattr(nn, name)()
    found = rules.activated(activation, normal([mean], [std]))
    share = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    values = mean + std * torch.special.ndtri(share)
    values = activation(values.float().view(-1, 1)).detach().double()
    close(found.mean, float(values.mean()), tolerance=2e-3 * std)
    close(found.std, float(values.std()), tolerance=1e-2 * std)
    # The least value of a curve is looked for at points of a grid.
    assert float(found.low) <= float(values.min()) + 1e-4 * std + 1e-5
    assert float(found.high) >= float(values.max()) - 1e-5


def test_a_constant_passes_an_activation_as_it_is() -> None:
    found = rules.activated(nn.ReLU(), normal([3, -3], [0, 0]))
    close(found.mean, 3, 0)
    close(found.std, 0, 0)
    close(found.high, 3, 0)


def test_clipping_gives_a_range_where_there_was_none() -> None:
    found = rules.activated(nn.ReLU6(), rules.unknown(CPU))
    close(found.low, 0)
    close(found.high, 6)
    close(found.mean, math.nan)
    assert not rules.activated(nn.ReLU(), rules.unknown(CPU)).has_range
    assert not rules.activated(nn.SiLU(), rules.unknown(CPU)).has_range


def test_the_dip_of_a_function_is_in_the_range() -> None:
    found = rules.activated(nn.SiLU(), normal([0], [2]))
    lowest = F.silu(torch.linspace(-3, 3, 100_001, dtype=torch.float64)).min()
    close(found.low, float(lowest), tolerance=1e-4)


def test_sums_of_normals() -> None:
    """Means add, variances add, and 6 deviations stay 6 deviations."""
    found = rules.added(normal([1, 2], [3, 0]), normal([-2, 5], [4, 2]))
    close(found.mean, -1, 7)
    close(found.std, 5, 2)
    close(found.low, -1 - 30, 7 - 12)
    close(found.high, -1 + 30, 7 + 12)


def test_sums_with_an_unknown_mean_add_ranges() -> None:
    found = rules.added(normal([1], [1]), rules.only_range(double(0), double(10)))
    close(found.low, -5)
    close(found.high, 17)
    close(found.mean, math.nan)


def test_products_and_shifts() -> None:
    one, two = (
        rules.only_range(double(-2, 1), double(3, 2)),
        rules.only_range(double(-5, 3), double(1, 4)),
    )
    found = rules.multiplied(one, two)
    close(found.low, -15, 3)
    close(found.high, 10, 8)
    assert found.mean.isnan().all()
    zero = rules.constant(0.0, CPU)
    assert not rules.multiplied(zero, rules.unknown(CPU)).has_range
    moved = rules.shifted(normal([1], [2]), 3)
    close(moved.mean, 4)
    close(moved.std, 2)
    close(moved.low, -8)
    close(moved.high, 16)


def test_side_by_side_mixed_and_chosen() -> None:
    parts = (rules.constant(7.0, CPU), normal([1, 2], [1, 0]))
    found = rules.side_by_side(parts, (2, 2))
    close(found.mean, 7, 7, 1, 2)
    close(found.low, 7, 7, -5, 2)
    close(found.at(torch.tensor([3, 0, 3])).mean, 2, 7, 2)
    whole = rules.mixed(found)
    close(whole.low, -5)
    close(whole.high, 7)
    close(whole.mean, math.nan)


def test_views() -> None:
    before = normal([1, 2], [0, 0])
    assert rules.reshaped(before, (1, 2, 3, 3), (1, 2, 9)) is before
    close(rules.reshaped(before, (1, 2, 1, 3), (1, 6)).mean, 1, 1, 1, 2, 2, 2)
    close(rules.reshaped(before, (1, 2, 2, 3), (1, 4, 3)).mean, math.nan)
    close(rules.reshaped(before, (1, 2, 3), (2, 3)).high, 2)
