"""Progress: what True stands for, bars in a terminal, lines elsewhere."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest
from rich.console import Console

from datafree.errors import ConfigError
from datafree.progress import Expecting, Noting, in_words, note, silent, waiting
from datafree.progress.bars import Bars, progress_of


def bars(*, terminal: bool, every: float = 30.0) -> tuple[Bars, io.StringIO]:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=100)
    return Bars(lambda: console, every), text


def test_work_below_the_interval_says_nothing_in_a_file() -> None:
    progress, text = bars(terminal=False)
    with progress("images", 3) as step:
        step(3)
    assert text.getvalue() == ""


def test_lines_count_and_tell_the_time_that_is_left() -> None:
    progress, text = bars(terminal=False, every=0.05)
    with progress("images", 200) as step:
        step(100)
        note(step, "loss 3")
        time.sleep(0.2)
    lines = text.getvalue().splitlines()
    assert len(lines) >= 2
    assert lines[0].startswith("images: 100 of 200 after under a second, about ")
    assert lines[0].endswith("left; loss 3")


def test_work_without_steps_tells_what_is_expected() -> None:
    progress, text = bars(terminal=False, every=0.05)
    with waiting(progress, "export", 150.0):
        time.sleep(0.12)
    first = text.getvalue().splitlines()[0]
    assert first == "export: under way after under a second, about 2 min left"


def test_a_terminal_has_bars_with_time_left() -> None:
    progress, text = bars(terminal=True)
    with waiting(progress, "export", 40.0):
        time.sleep(0.3)
    shown = text.getvalue()
    assert "export" in shown
    assert "0:00:39" in shown or "0:00:40" in shown


def test_bars_within_bars_share_a_display() -> None:
    progress, text = bars(terminal=True)
    with progress("outer", 2) as outer:
        with progress("inner", 5) as inner:
            inner(5)
            time.sleep(0.2)
        outer(1)
    assert "inner" in text.getvalue()
    with progress("next", 1) as step:  # the display was closed
        assert isinstance(step, Noting)
        assert isinstance(step, Expecting)


def test_an_error_closes_the_display() -> None:
    progress, _ = bars(terminal=True)
    with pytest.raises(ValueError, match="x"), progress("work", 2):
        raise ValueError("x")
    with progress("work", 2) as step:
        step(1)


def test_true_and_false_are_progress_too() -> None:
    assert isinstance(progress_of(True), Bars)
    assert progress_of(False) is silent
    assert progress_of(silent) is silent


@pytest.mark.parametrize("given", ["yes", 3, None])
def test_other_things_are_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match="progress is True"):
        progress_of(given)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "under a second"), (40.4, "40 s"), (89, "89 s"), (150, "2 min"), (9000, "2.5 h")],
)
def test_times_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
