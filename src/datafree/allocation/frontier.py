"""All choices of one option per layer that no other choice beats, by dynamic programming.

Pure functions on integer costs and float losses; nothing here knows about networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datafree.errors import ConfigError

Option = tuple[int, float]
"""What one choice for one layer costs, and what it loses."""
LIMIT = 200_000


@dataclass(frozen=True)
class Frontier:
    """The non-dominated totals: costs strictly increase, losses strictly decrease.

    Attributes:
        costs: (P,) int64, sums of the options' costs.
        losses: (P,) float64, sums of the options' losses.
        exact: False where points were left out to keep the frontier short.
    """

    costs: NDArray[np.int64]
    losses: NDArray[np.float64]
    exact: bool
    _steps: tuple[tuple[NDArray[np.int64], NDArray[np.int64]], ...]

    def __len__(self) -> int:
        """Number of points P."""
        return len(self.costs)

    def choice(self, point: int) -> tuple[int, ...]:
        """Index of the option every layer has at a point, in the order of the layers."""
        found: list[int] = []
        for before, option in reversed(self._steps):
            found.append(int(option[point]))
            point = int(before[point])
        return tuple(reversed(found))

    def within(self, budget: int) -> int | None:
        """The point of least loss that costs at most `budget`; None where none does."""
        place = int(np.searchsorted(self.costs, budget, side="right"))
        return place - 1 if place else None


def pareto_frontier(options: Sequence[Sequence[Option]], limit: int = LIMIT) -> Frontier:
    """Exact Pareto frontier of total cost and total loss over all combinations of options.

    The totals of the first l layers that no other total beats (another that costs no more and loses
    no more) are all that the best totals of l + 1 layers can be made of, since costs and losses
    add up: layer by layer, every kept total is joined with every option and what is dominated goes.
    Of equal totals the one with the earlier options stays. Costs are never rounded. While a
    frontier has more than `limit` points, it is cut into `limit` ranges of cost and of each only
    the point of least loss stays (the others count as if they cost as much as it), and the
    cheapest one; so no total is ever understated and the cheapest one is always exact.

    Args:
        options: for every layer, the (cost, loss) of each of its options; costs are not negative,
            losses finite.
        limit: points above which the frontier is thinned.

    Returns:
        The frontier; with no layers, the single point (0, 0).

    Raises:
        ConfigError: a layer has no option.
    """
    costs, losses = np.zeros(1, np.int64), np.zeros(1)
    steps: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    exact = True
    for place, layer in enumerate(options):
        if not layer:
            raise ConfigError(f"layer {place} has no number of bits to choose: name at least one")
        more = np.array([cost for cost, _ in layer], np.int64)
        worse = np.array([loss for _, loss in layer], np.float64)
        costs = (costs[:, None] + more).ravel()
        losses = (losses[:, None] + worse).ravel()
        kept = _undominated(costs, losses)
        if len(kept) > limit:
            exact = False
            kept = kept[_thinned(costs[kept], limit)]
        costs, losses = costs[kept], losses[kept]
        steps.append((kept // len(layer), kept % len(layer)))
    return Frontier(costs, losses, exact, tuple(steps))


def _undominated(costs: NDArray[np.int64], losses: NDArray[np.float64]) -> NDArray[np.int64]:
    """Indices of the points no other point beats, by increasing cost."""
    order = np.lexsort((losses, costs))
    sorted_losses = losses[order]
    least = np.minimum.accumulate(sorted_losses)
    better = np.ones(len(order), bool)
    better[1:] = sorted_losses[1:] < least[:-1]
    return order[better]


def _thinned(costs: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Indices of the cheapest point and of the last in each of `limit` equal ranges of cost."""
    width = -(-int(costs[-1] - costs[0] + 1) // limit)
    cell = (costs - costs[0]) // width
    last = np.append(cell[1:] != cell[:-1], True)
    last[0] = True
    return np.flatnonzero(last)
