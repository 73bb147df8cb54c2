from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import pytest

from datafree.errors import ConfigError
from datafree.progress import Expecting, Noting, Step, deadline, note, silent
from datafree.progress.deadline import NEVER, Deadline
from datafree.runs.limits import Counted, Limits, check_limit, cut_short, shortened
from datafree.testing.watching import Counter

EXPECTED = {
    "capture": 2.0, "synthesis": 30.0, "calibration": 4.0, "reconstruction": 10.0, "export": 6.0,
}  # fmt: skip


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(deadline.time, "monotonic", lambda: now[0])
    return now


def test_what_cannot_be_cut_keeps_its_time_and_the_rest_is_shared_out(clock: list[float]) -> None:
    limits = Limits(Deadline.within(32), EXPECTED)
    clock[0] = 2.0
    # 30 s are left, 10 of them for calibration and export; synthesis has three quarters of 20.
    assert limits.of("synthesis").left == pytest.approx(15)
    clock[0] = 22.0
    assert limits.of("reconstruction").left == pytest.approx(4)
    clock[0] = 30.0
    assert limits.of("reconstruction").over


def test_a_stage_that_nobody_foretold_has_all_that_is_left(clock: list[float]) -> None:
    assert Limits(Deadline.within(8)).of("training").left == 8
    assert Limits().of("synthesis") == NEVER
    assert clock


def test_optional_work_is_done_where_time_is_left(clock: list[float]) -> None:
    limits = Limits(Deadline.within(32), EXPECTED)
    clock[0] = 25.0
    assert limits.leaves("export")
    clock[0] = 26.5
    assert not limits.leaves("export")
    assert Limits().leaves("export")


def test_expected_times_are_cut_to_the_limit() -> None:
    assert shortened(EXPECTED, None) == EXPECTED
    assert shortened(EXPECTED, 100.0) == EXPECTED
    found = shortened(EXPECTED, 32.0)
    assert sum(found.values()) == pytest.approx(32)
    assert found["synthesis"] == pytest.approx(15)
    assert found["export"] == 6.0
    assert shortened(EXPECTED, 5.0)["synthesis"] == 0
    assert shortened({"export": 3.0}, 1.0) == {"export": 3.0}


def test_a_limit_below_what_must_be_done_is_refused() -> None:
    check_limit(EXPECTED, 12.0)
    check_limit(EXPECTED, None)
    with pytest.raises(ConfigError, match=r"of 11 s is too short: .* about 12 s .*export 6 s.*16s"):
        check_limit(EXPECTED, 11.0)


def test_tasks_that_ended_early_are_counted() -> None:
    counter = Counter()
    counted = Counted(counter)
    with counted("images", 5) as step:
        step(2)
        step(1)
    with counted("rounding", 2) as step:
        step(2)
    assert counter.done == 5
    assert counted.cut() == ["images after 3 of 5 steps"]
    assert cut_short(counted.cut()) == ["max_time ended early: images after 3 of 5 steps"]
    assert cut_short([]) == []


def test_notes_are_passed_on() -> None:
    told: list[object] = []

    class Shown:
        def __call__(self, done: int, /) -> None:
            del done

        def note(self, text: str) -> None:
            told.append(text)

        def expect(self, seconds: float) -> None:
            told.append(seconds)

    shown = Shown()

    @contextmanager
    def bar(description: str, total: int) -> Generator[Step]:
        del description, total
        yield shown

    for progress in (bar, silent):
        with Counted(progress)("x", 1) as step:
            assert isinstance(step, Noting)
            assert isinstance(step, Expecting)
            note(step, "half")
            step.expect(3.0)
    assert told == ["half", 3.0]
