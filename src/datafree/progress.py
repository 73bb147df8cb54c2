"""How long work tells that it is alive, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

Step = Callable[[int], None]
"""Called with the number of units done since the last call."""


@runtime_checkable
class Noting(Protocol):
    """A `Step` that can also show a line beside its bar."""

    def __call__(self, done: int, /) -> None:
        """`done` units more."""
        ...

    def note(self, text: str) -> None:
        """Show `text` in place of the last note."""
        ...


def note(step: Step, text: str) -> None:
    """Show `text` beside the bar of `step`, where it can."""
    if isinstance(step, Noting):
        step.note(text)


class Progress(Protocol):
    """Opens one bar: ``with progress("zeroq images", total=500) as step: … step(1)``."""

    def __call__(self, description: str, total: int) -> AbstractContextManager[Step]:
        """Start a task of `total` units under `description`; leaving the context ends it."""
        ...


@contextmanager
def silent(description: str, total: int) -> Generator[Step]:
    """A `Progress` that shows nothing; the default everywhere outside the command line."""
    del description, total

    def step(done: int) -> None:
        del done

    yield step
