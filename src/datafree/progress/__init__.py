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


@runtime_checkable
class Expecting(Protocol):
    """A `Step` that can also move with time, for work that has no steps to count."""

    def __call__(self, done: int, /) -> None:
        """`done` units more."""
        ...

    def expect(self, seconds: float) -> None:
        """The work will take about so many seconds from its start on."""
        ...


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


@contextmanager
def waiting(progress: Progress, description: str, seconds: float | None = None) -> Generator[None]:
    """One step of `progress` under `description`, that takes about `seconds` if they are known."""
    with progress(description, 1) as step:
        if seconds is not None and isinstance(step, Expecting):
            step.expect(seconds)
        yield
        step(1)


def beside(step: Step) -> Progress:
    """A `Progress` that shows itself in words beside the bar of `step`, which holds it all."""

    @contextmanager
    def progress(description: str, total: int) -> Generator[Step]:
        done = 0

        def inner(count: int) -> None:
            nonlocal done
            done += count
            note(step, f"{description} {done}/{total}")

        yield inner
        note(step, "")

    return progress


def in_words(seconds: float) -> str:
    """Seconds as people say them, rounded: ``40 s``, ``3 min``, ``2.5 h``."""
    if seconds < 1:
        return "under a second"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
