"""Bars with time left in a terminal; where output goes to a file, a line every half minute."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

from datafree.errors import ConfigError
from datafree.progress import Progress, Step, in_words, silent

_EVERY = 30.0  # seconds between two lines
_LATE = 0.99  # where a bar that moves with time stops


def progress_of(given: Progress | bool) -> Progress:
    """What a caller's `progress` stands for: True are bars on standard error, False is silence.

    Raises:
        ConfigError: it is neither, nor can it be called.
    """
    if given is True:
        return Bars(lambda: Console(stderr=True))
    if given is False:
        return silent
    if not callable(given):
        raise ConfigError(
            f"progress is True, False or a function, see datafree.progress; not {given!r}"
        )
    return given


class Bars:
    """A `datafree.progress.Progress`: bars in a terminal, lines elsewhere."""

    def __init__(self, console: Callable[[], Console], every: float = _EVERY) -> None:
        """Show on what `console` returns when a bar is opened, lines `every` so many seconds."""
        self._console, self._every = console, every
        self._open: list[_Rich] = []  # the display of a bar that is open, for bars within it

    def say(self, text: str) -> None:
        """Print a line beside the bars."""
        self._console().print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def __call__(self, description: str, total: int) -> Generator[Step]:
        """See `datafree.progress.Progress`."""
        console = self._console()
        if not (console.is_terminal or console.is_jupyter):
            with _lines(_Work(description, total), console, self._every) as work:
                yield work
            return
        with ExitStack() as stack:
            if not self._open:
                self._open.append(stack.enter_context(_Rich(console)))
                stack.callback(self._open.clear)
            display = self._open[0]
            task = display.add_task(escape(description), total=total, note="", expected=None)
            stack.callback(display.remove_task, task)
            yield _Bar(display, task)


class _Rich(RichProgress):
    """All bars that are open."""

    def __init__(self, console: Console) -> None:
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            _Count(),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bars, after those that move with time were moved."""
        for task in self.tasks:
            if (expected := task.fields["expected"]) is not None:
                done = min(task.elapsed or 0.0, _LATE * expected)
                self.update(task.id, completed=done, total=expected)
        yield from super().get_renderables()


class _Count(ProgressColumn):
    """Units done of all; nothing of bars that move with time."""

    def render(self, task: Task) -> Text:
        timed = task.fields["expected"] is not None or task.total == 1
        return Text("" if timed else f"{task.completed:.0f}/{task.total or 0:.0f}")


@dataclass(frozen=True)
class _Bar:
    """One bar; a `datafree.progress.Noting` and `Expecting`."""

    bars: RichProgress
    task: TaskID

    def __call__(self, done: int, /) -> None:
        self.bars.advance(self.task, done)

    def note(self, text: str) -> None:
        self.bars.update(self.task, note=escape(text))

    def expect(self, seconds: float) -> None:
        self.bars.update(self.task, expected=max(seconds, 0.1))


@dataclass
class _Work:
    """Work under way, told in lines; a `datafree.progress.Noting` and `Expecting`."""

    description: str
    total: int
    done: int = 0
    noted: str = ""
    expected: float | None = None
    started: float = field(default_factory=time.monotonic)

    def __call__(self, done: int, /) -> None:
        self.done += done

    def note(self, text: str) -> None:
        self.noted = text

    def expect(self, seconds: float) -> None:
        self.expected = seconds

    def line(self) -> str:
        """``dsg images: 120 of 200 after 60 s, about 40 s left``."""
        elapsed = time.monotonic() - self.started
        count = f" {self.done} of {self.total}" if self.total > 1 else " under way"
        left: float | None = None
        if self.expected is not None:
            left = max(self.expected - elapsed, 1.0)
        elif self.done:
            left = elapsed / self.done * max(self.total - self.done, 0)
        told = "" if left is None else f", about {in_words(left)} left"
        noted = f"; {self.noted}" if self.noted else ""
        return f"{self.description}:{count} after {in_words(elapsed)}{told}{noted}"


@contextmanager
def _lines(work: _Work, console: Console, every: float) -> Generator[_Work]:
    """Print a line on `work` from time to time, from a thread of its own."""
    over = threading.Event()

    def tell() -> None:
        while not over.wait(every):
            console.print(work.line(), markup=False, highlight=False, soft_wrap=True)

    thread = threading.Thread(target=tell, daemon=True, name="datafree progress")
    thread.start()
    try:
        yield work
    finally:
        over.set()
        thread.join()
