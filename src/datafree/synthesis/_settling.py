"""When rates fall and steps end: by what the loss does, instead of after a number of steps."""

from __future__ import annotations

import torch

_WINDOW = 10
"""Steps over which a fall of the loss is looked at."""
_RATES = 3
"""Rates that are tried, each a tenth of the one before."""


class Settling:
    """Whether the loss still moves, step by step.

    It has settled at a rate when its lowest value fell by less than a share of all its fall so far,
    within `_WINDOW` steps. Rates then fall to a tenth; at the last of `_RATES` the steps are over.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, least_fall: float) -> None:
        """Watch the steps of `optimizer`, whose rates it changes.

        Args:
            optimizer: of the steps.
            least_fall: share of the whole fall, above 0.
        """
        self._optimizer = optimizer
        self._least_fall = least_fall
        self._first: float | None = None
        self._lowest: list[float] = []  # up to every step of the current rate
        self._rates = 1

    def over(self, loss: float) -> bool:
        """Whether no step should follow the one of this loss."""
        first = self._first = loss if self._first is None else self._first
        lowest = min(loss, self._lowest[-1]) if self._lowest else loss
        self._lowest.append(lowest)
        if len(self._lowest) <= _WINDOW:
            return False
        fell = self._lowest[-1 - _WINDOW] - lowest
        if not fell <= self._least_fall * (first - lowest):  # also of a loss that is not a number
            return False
        if self._rates == _RATES:
            return True
        self._rates += 1
        self._lowest = [lowest]
        for group in self._optimizer.param_groups:
            group["lr"] *= 0.1
        return False
