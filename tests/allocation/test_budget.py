"""Costs counted by hand, budgets as people write them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datafree.allocation.budget import (
    Budget,
    Layer,
    Unit,
    describe_layers,
    options_of,
    parse_budget,
    resolve_budget,
    show_cost,
)
from datafree.config import BudgetOptions, Scheme
from datafree.errors import ConfigError
from datafree.graph.fold import fold_batch_norms
from datafree.testing.watching import fingerprint
from networks import SPEC, captured

# By hand, 8x8 images: path, weight, positions.
SIZES = {
    # conv 3->4 3x3 same; conv 4->6 3x3 stride 2; linear 6->5.
    "Tiny": [("conv1", 4 * 3 * 9, 64), ("conv2", 6 * 4 * 9, 16), ("linear", 30, 1)],
    # A depthwise weight has 9 numbers a channel, a grouped one (3 groups) 4 inputs.
    "Grouped": [
        ("stem", 8 * 27, 16), ("depthwise", 8 * 9, 16), ("pointwise", 12 * 8, 16),
        ("grouped", 6 * 4 * 9, 4), ("linear", 30, 1),
    ],
    # The shared convolution runs twice; the graph names it after its weight.
    "Tied": [("stem", 12, 64), ("twin", 144, 128), ("twin_1", 144, 16), ("linear", 20, 1)],
}  # fmt: skip


@pytest.mark.parametrize("name", list(SIZES))
def test_elements_and_operations_by_hand(name: str) -> None:
    folded = fold_batch_norms(captured(name))
    before = fingerprint(folded)
    layers = describe_layers(folded, Scheme(), SPEC.shape)
    assert fingerprint(folded) == before
    expected = [(path, size, size * positions) for path, size, positions in SIZES[name]]
    assert [(layer.path, layer.elements, layer.macs) for layer in layers] == expected


@pytest.mark.parametrize(
    ("scheme", "activations", "free"),
    [
        ({"bits": "W8A4"}, [8, 4, 4], [True] * 3),
        ({"bits": "W8A32"}, [32, 32, 32], [True] * 3),
        ({"bits": "W8A4", "policy": "first_last_8"}, [8, 4, 4], [False, True, False]),
        ({"bits": "W8A4", "policy": "brecq"}, [32, 8, 8], [False, True, False]),
        (
            {"bits": "W3A8", "layer_bits": {"conv2": 2}, "weight_range": "mse"},
            [8] * 3,
            [True, False, True],
        ),
    ],
)
def test_activations_and_policy(
    scheme: dict[str, Any], activations: list[int], free: list[bool]
) -> None:
    folded = fold_batch_norms(captured("Tiny"))
    layers = describe_layers(folded, Scheme(**scheme), SPEC.shape)
    assert [layer.activation_bits for layer in layers] == activations
    assert [layer.free for layer in layers] == free


LAYERS = [Layer("a", 10, 1000, 8, free=False), Layer("b", 30, 300, 4, free=True)]


def test_costs_by_hand() -> None:
    assert LAYERS[1].cost(3, "bits") == 90
    assert LAYERS[1].cost(3, "BOPs") == 300 * 3 * 4
    losses = {"a": {2: 9.0, 4: 5.0}, "b": {2: 1.5, 4: 0.5}}
    # The policy's layer has one choice, 8 bits, whatever was measured for it.
    assert options_of(LAYERS, losses, (2, 4), "bits") == [[(80, 0.0)], [(60, 1.5), (120, 0.5)]]
    assert options_of(LAYERS, losses, (2, 4), "BOPs") == [
        [(64_000, 0.0)],
        [(2_400, 1.5), (4_800, 0.5)],
    ]


@pytest.mark.parametrize(
    ("text", "unit", "limit"),
    [
        ("0.5MB", "bits", 4_000_000),
        ("300kB", "bits", 2_400_000),
        (" 1.5 kb ", "bits", 12_000),
        ("17B", "bits", 136),
        (".25GB", "bits", 2 * 10**9),
        ("0.1B", "bits", 0),
        ("2.5 GBOPs", "BOPs", 2_500_000_000),
        ("7tbops", "BOPs", 7 * 10**12),
        ("900BOPS", "BOPs", 900),
    ],
)
def test_budgets_as_people_write_them(text: str, unit: Unit, limit: int) -> None:
    assert parse_budget(text) == Budget(unit, limit, text.strip())


@pytest.mark.parametrize("text", ["", "5", "MB", "-1MB", "1e3B", "0MB", "1 PB", "1MiB", "4 bits"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not understood: write a size such as 0\.5MB"):
        parse_budget(text)


@given(st.integers(1, 10**16), st.sampled_from(["bits", "BOPs"]))
def test_a_shown_cost_can_be_asked_for(cost: int, unit: Unit) -> None:
    budget = parse_budget(show_cost(cost, unit))
    assert budget.unit == unit
    assert cost <= budget.limit <= cost * 1.001 + 8


def test_shown_costs() -> None:
    assert show_cost(8 * 134_128, "bits") == "134.128 kB"
    assert show_cost(12, "bits") == "1.5 B"
    assert show_cost(2_520_000_001, "BOPs") == "2.521 GBOPs"
    assert show_cost(8 * 10**6, "bits") == "1 MB"
    assert show_cost(700 * 10**6, "BOPs") == "700 MBOPs"


@pytest.mark.parametrize(
    ("average", "limit"), [(4, 80 + 120), (2, 80 + 60), (3.99, 80 + 119), (8, 80 + 240)]
)
def test_an_average_is_that_of_the_free_layers(average: float, limit: int) -> None:
    budget = resolve_budget(BudgetOptions(average_bits=average), LAYERS)
    assert (budget.unit, budget.limit) == ("bits", limit)


def test_a_budget_pays_for_the_layers_of_the_policy() -> None:
    """10 weights at 8 bits and 30 at 2 are 17.5 bytes."""
    assert resolve_budget(BudgetOptions(budget="17.5B"), LAYERS).limit == 140
    message = "17.4B cannot be kept to: the least is 17.5 B, with 2 bits in every layer but those"
    with pytest.raises(ConfigError, match=message):
        resolve_budget(BudgetOptions(budget="17.4B"), LAYERS)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"budget": "9B"}, "9B cannot be kept to: the least is 15 B, with 4 bits in every layer$"),
        ({"budget": "4kBOPs"}, "4kBOPs cannot be .* the least is 4.8 kBOPs, with 4 bits in every"),
        ({"average_bits": 3.5}, "3.5 bits on average cannot be kept to: the least is 4 bits, with"),
        ({"budget": "much"}, "budget 'much' is not understood"),
    ],
)
def test_budgets_that_cannot_be_kept(wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_budget(BudgetOptions(**wanted, candidate_bits=(6, 4)), LAYERS[1:])
