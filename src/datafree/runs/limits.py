"""The time limit of a run: what each stage gets of it, and what had to be cut."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from datafree.errors import ConfigError
from datafree.progress import Expecting, Progress, Step, in_words, note
from datafree.progress.deadline import NEVER, Deadline

LEARNING = ("synthesis", "reconstruction", "training")
"""Stages that can end early and keep what there is; all others take the time they take."""


@dataclass(frozen=True)
class Limits:
    """When the stages of a run are to end.

    Attributes:
        whole: the run.
        expected: seconds of every stage, in their order, as foretold; may be empty.
    """

    whole: Deadline = NEVER
    expected: Mapping[str, float] = field(default_factory=dict)

    def of(self, stage: str) -> Deadline:
        """When `stage`, which begins now, is to end.

        What comes later and cannot be cut keeps its time. The rest is shared out among this stage
        and later ones that learn, as their expected times are.
        """
        if not self.whole.limited:
            return self.whole
        later = dict(list(self.expected.items())[self._place(stage) + 1 :])
        kept = sum(seconds for name, seconds in later.items() if name not in LEARNING)
        learned = sum(seconds for name, seconds in later.items() if name in LEARNING)
        own = self.expected.get(stage, 0.0)
        part = own / (own + learned) if own + learned else 1.0
        return self.whole.before(kept).share(part)

    def leaves(self, stage: str) -> bool:
        """Whether there is time left for something optional before `stage`."""
        return not self.whole.before(sum(list(self.expected.values())[self._place(stage) :])).over

    def _place(self, stage: str) -> int:
        names = list(self.expected)
        return names.index(stage) if stage in names else len(names)


def shortened(seconds: Mapping[str, float], limit: float | None) -> dict[str, float]:
    """Expected `seconds` of stages, those that learn cut to what `limit` leaves them."""
    kept = sum(value for name, value in seconds.items() if name not in LEARNING)
    learned = sum(value for name, value in seconds.items() if name in LEARNING)
    if limit is None or not learned:
        return dict(seconds)
    factor = min(1.0, max(0.0, limit - kept) / learned)
    return {name: value * factor if name in LEARNING else value for name, value in seconds.items()}


def check_limit(seconds: Mapping[str, float], limit: float | None) -> None:
    """Refuse a limit that is too small for what cannot be cut.

    Args:
        seconds: of all stages, as expected; capture's are known.
        limit: of the run, in seconds.

    Raises:
        ConfigError: as said.
    """
    kept = {name: value for name, value in seconds.items() if name not in LEARNING}
    total = sum(kept.values())
    if limit is None or total <= limit:
        return
    parts = ", ".join(f"{name} {in_words(value)}" for name, value in kept.items() if value >= 0.5)
    raise ConfigError(
        f"max_time of {in_words(limit)} is too short: what cannot be cut takes about"
        f" {in_words(total)} here ({parts}); give {int(1.2 * total) + 2}s or more"
    )


def cut_short(tasks: Sequence[str]) -> list[str]:
    """The note on `tasks` that the time limit ended; none where there are none."""
    return [f"max_time ended early: {', '.join(tasks)}"] if tasks else []


class Counted:
    """A `Progress` that passes everything on, and remembers which tasks ended before their end.

    Attributes:
        tasks: units done and units in all, by description.
    """

    def __init__(self, progress: Progress) -> None:
        """Pass on to `progress`."""
        self._progress = progress
        self.tasks: dict[str, tuple[int, int]] = {}

    @contextmanager
    def __call__(self, description: str, total: int) -> Generator[Step]:
        """See `Progress`."""
        self.tasks[description] = (0, total)
        with self._progress(description, total) as step:
            yield _Counting(self, description, step)

    def cut(self) -> list[str]:
        """The tasks that ended early, in words: ``zeroq images after 20 of 500 steps``."""
        return [
            f"{description} after {done} of {total} steps"
            for description, (done, total) in self.tasks.items()
            if done < total
        ]


@dataclass(frozen=True)
class _Counting:
    counted: Counted
    description: str
    step: Step

    def __call__(self, done: int, /) -> None:
        before, total = self.counted.tasks[self.description]
        self.counted.tasks[self.description] = (before + done, total)
        self.step(done)

    def note(self, text: str) -> None:
        note(self.step, text)

    def expect(self, seconds: float) -> None:
        if isinstance(self.step, Expecting):
            self.step.expect(seconds)
