from __future__ import annotations

import math

import pytest

from datafree.progress import deadline
from datafree.progress.deadline import NEVER, Deadline


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(deadline.time, "monotonic", lambda: now[0])
    return now


def test_never_is_never_over(clock: list[float]) -> None:
    clock[0] = 1e12
    assert not NEVER.limited
    assert not NEVER.over
    assert NEVER.left == math.inf
    assert NEVER.share(0.1) == NEVER.before(5) == Deadline.within(None) == NEVER


def test_time_runs_out(clock: list[float]) -> None:
    given = Deadline.within(10)
    assert given.limited
    assert (given.left, given.over) == (10, False)
    clock[0] = 110.0
    assert (given.left, given.over) == (0, True)
    clock[0] = 120.0
    assert (given.left, given.over) == (0, True)


def test_parts_of_what_is_left(clock: list[float]) -> None:
    given = Deadline.within(10)
    clock[0] = 104.0
    assert given.share(0.5).left == 3
    assert given.before(2).left == 4
    clock[0] = 111.0
    assert given.share(0.5).over
