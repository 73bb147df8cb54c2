"""Runs in turn, within a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datafree.runtimes._timing import MOST_ROUNDS, Cell, Opened, timed

Images = NDArray[np.float32]


class Log:
    """Files that write down what is asked of them."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.calls: list[tuple[str, int, int]] = []
        self.opened: list[int] = []
        self.steps: list[int] = []
        self.seconds = seconds

    def open(self, threads: int) -> Opened:
        self.opened.append(threads)

        def file(name: str) -> Callable[[Images], Any]:
            def call(images: Images) -> None:
                self.calls.append((name, threads, len(images)))
                time.sleep(self.seconds * len(images))

            return call

        return {name: file(name) for name in ("float", "student")}


def test_files_are_run_in_turn_and_each_is_as_often_first() -> None:
    log = Log()
    ((cell, done),) = timed(log.open, [Cell(1, 2)], (3, 4, 4), 60.0, log.steps.append)
    assert cell == Cell(1, 2) and log.steps == [1]
    assert {len(times) for times in done.seconds.values()} == {MOST_ROUNDS}
    names = [name for name, _, _ in log.calls[2:]]  # the first run of each is not timed
    rounds = list(zip(names[::2], names[1::2], strict=True))
    assert len(rounds) == MOST_ROUNDS
    assert rounds.count(("float", "student")) == rounds.count(("student", "float"))


def test_each_number_of_threads_is_loaded_once() -> None:
    log = Log()
    cells = [Cell(1, 1), Cell(1, 8), Cell(2, 1), Cell(2, 8)]
    found = timed(log.open, cells, (3, 4, 4), 0.2, log.steps.append)
    assert [cell for cell, _ in found] == cells
    assert log.opened == [1, 2]
    assert {size for _, _, size in log.calls} == {1, 8}


def test_what_would_take_too_long_is_left_out_but_for_the_first() -> None:
    log = Log(seconds=0.01)
    found = timed(log.open, [Cell(1, 1), Cell(1, 50)], (3, 4, 4), 0.05, log.steps.append)
    assert [cell for cell, _ in found] == [Cell(1, 1)]
    assert len(found[0][1].seconds["float"]) >= 3
    assert log.steps == [1, 1]


def test_a_program_that_waits_has_no_processor_time() -> None:
    log = Log(seconds=0.01)
    ((_, done),) = timed(log.open, [Cell(1, 1)], (3, 4, 4), 0.05, log.steps.append)
    assert done.processor < 0.5


def test_processor_time_leaves_out_what_others_took() -> None:
    """With one thread alone: of several nobody knows who waited for whom."""
    log = Log(seconds=0.01)
    found = timed(
        log.open, [Cell(1, 1), Cell(2, 1)], (3, 4, 4), 0.3, log.steps.append, processor=True
    )
    one, two = (min(done.seconds["float"]) for _, done in found)
    assert one < 0.005 < 0.01 <= two
    assert all(done.round >= 0.02 for _, done in found)
