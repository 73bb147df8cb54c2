"""A bar for work that is begun again: its units are told once each, and all of them at the end."""

from __future__ import annotations

from datafree.progress import Step


class Meter:
    """A `Step` that shares the units that are left among the steps that are to come.

    Where steps are taken again, in other numbers, the bar goes on from where it is.
    """

    def __init__(self, step: Step, units: int) -> None:
        """Nothing is done yet.

        Args:
            step: of the bar.
            units: in all.
        """
        self._step, self._left = step, units
        self._units = self._steps = units
        self._done = self._told = 0

    def expect(self, steps: int) -> None:
        """From now on `steps` steps are all that is to come."""
        self._left -= self._told
        self._units, self._steps = self._left, max(steps, 1)
        self._done = self._told = 0

    def __call__(self, done: int, /) -> None:
        """`done` steps more."""
        self._done += done
        due = self._units * min(self._done, self._steps) // self._steps
        new, self._told = due - self._told, due
        self._step(new)
