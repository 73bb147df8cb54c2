"""The frontier against brute force over all combinations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datafree.allocation.frontier import Option, pareto_frontier
from datafree.errors import ConfigError

OPTION = st.tuples(
    st.integers(0, 30),
    st.floats(0, 10, allow_nan=False) | st.integers(0, 4).map(float),
)
LAYERS = st.lists(st.lists(OPTION, min_size=1, max_size=4), max_size=5)


def total(layers: list[list[Option]], choice: tuple[int, ...]) -> Option:
    """Cost and loss of a choice, added in the order of the layers."""
    cost, loss = 0, 0.0
    for options, index in zip(layers, choice, strict=True):
        cost, loss = cost + options[index][0], loss + options[index][1]
    return cost, loss


def every_total(layers: list[list[Option]]) -> set[Option]:
    return {total(layers, c) for c in itertools.product(*(range(len(o)) for o in layers))}


def brute_force(layers: list[list[Option]]) -> list[Option]:
    """Totals that no other total beats, by definition."""
    totals = every_total(layers)
    return sorted(
        a for a in totals if not any(b != a and b[0] <= a[0] and b[1] <= a[1] for b in totals)
    )


@given(LAYERS)
def test_equals_brute_force(layers: list[list[Option]]) -> None:
    found = pareto_frontier(layers)
    assert found.exact
    points = list(zip(found.costs.tolist(), found.losses.tolist(), strict=True))
    assert points == brute_force(layers)
    assert len(found) == len(points)
    assert [total(layers, found.choice(i)) for i in range(len(points))] == points


@given(LAYERS, st.integers(-1, 160))
def test_the_best_within_a_budget(layers: list[list[Option]], budget: int) -> None:
    found = pareto_frontier(layers)
    affordable = [point for point in every_total(layers) if point[0] <= budget]
    place = found.within(budget)
    if not affordable:
        assert place is None
    else:
        assert place is not None
        assert total(layers, found.choice(place))[0] <= budget
        assert found.losses[place] == min(loss for _, loss in affordable)


@given(LAYERS, st.integers(1, 6))
def test_a_thinned_frontier_never_understates(layers: list[list[Option]], limit: int) -> None:
    found = pareto_frontier(layers, limit)
    points = list(zip(found.costs.tolist(), found.losses.tolist(), strict=True))
    assert [total(layers, found.choice(i)) for i in range(len(points))] == points
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in itertools.pairwise(points))
    assert len(points) <= limit + 1
    assert points[0][0] == min(cost for cost, _ in every_total(layers))
    if found.exact:
        assert points == brute_force(layers)


def test_by_hand() -> None:
    """Two layers of 10 and 30 weights at 2 or 4 bits; the small one is the sensitive one."""
    found = pareto_frontier([[(20, 5.0), (40, 1.0)], [(60, 2.0), (120, 1.5)]])
    assert found.costs.tolist() == [80, 100, 160]  # (2, 4) costs 140 and loses 6.5: dominated
    assert found.losses.tolist() == [7.0, 3.0, 2.5]
    assert [found.choice(i) for i in range(3)] == [(0, 0), (1, 0), (1, 1)]
    assert found.within(79) is None
    assert [found.within(b) for b in (80, 99, 100, 159, 160, 10**12)] == [0, 0, 1, 1, 2, 2]


def test_thinning_keeps_the_cheapest_and_the_best_of_each_range() -> None:
    """One layer of costs 0 to 9 and losses 9 to 0 in three ranges: 0-3, 4-7, 8-9."""
    found = pareto_frontier([[(cost, 9.0 - cost) for cost in range(10)]], limit=3)
    assert found.costs.tolist() == [0, 3, 7, 9]
    assert not found.exact


def test_equal_totals_keep_the_earlier_option() -> None:
    found = pareto_frontier([[(1, 1.0), (1, 1.0)], [(0, 0.0)]])
    assert len(found) == 1
    assert found.choice(0) == (0, 0)


def test_large_costs_do_not_overflow() -> None:
    found = pareto_frontier([[(2**50, 1.0), (2**51, 0.5)]] * 20)
    assert found.costs[-1] == 20 * 2**51
    assert found.costs.dtype == np.int64


def test_a_layer_without_options_is_refused() -> None:
    with pytest.raises(ConfigError, match="layer 1 has no number of bits"):
        pareto_frontier([[(1, 1.0)], []])
