"""Runs of several files in turn, within a time that is known before."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datafree.progress import Step

MOST_ROUNDS = 100
_FEWEST_ROUNDS = 3
_ENOUGH = 0.25  # seconds of a cell after which `_GOOD_ROUNDS` rounds will do
_GOOD_ROUNDS = 25
Given = NDArray[Any] | Mapping[str, NDArray[Any]]
"""What a file is run on: images in the form it takes, or several inputs by their names."""
Opened = Mapping[str, Callable[[Any], Any]]
Forms = Mapping[str, Callable[[NDArray[np.float32]], Given]]
_AS_THEY_ARE: Forms = MappingProxyType({})


@dataclass(frozen=True)
class Done:
    """Seconds of single runs by file; of a round; of processor time per second meanwhile."""

    seconds: dict[str, list[float]]
    round: float
    processor: float


@dataclass(frozen=True)
class Cell:
    """One setting that all files are run in."""

    threads: int
    batch: int


def available_threads() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def timed(  # noqa: PLR0913 - what a table of times is made of
    opened: Callable[[int], Opened],
    cells: Sequence[Cell],
    shape: tuple[int, ...],
    seconds: float,
    step: Step,
    *,
    processor: bool = False,
    given: Forms = _AS_THEY_ARE,
) -> list[tuple[Cell, Done]]:
    """Seconds of single runs, by cell and file.

    Args:
        opened: loads all files for a number of threads. Only one number is loaded at a time: idle
            threads of another would spin beside those that are timed.
        cells: ordered by threads.
        shape: of one image.
        seconds: for all runs.
        step: told after every cell.
        processor: in cells of one thread take the time this process had a processor. On an idle
            machine that is all the time; on a busy one it is what an idle one would take.
        given: by file, images (B, C, H, W) in the form that it takes, where it takes another one.
    """
    deadline = time.perf_counter() + seconds
    found: list[tuple[Cell, Done]] = []
    threads, calls = 0, dict[str, Callable[[Given], Any]]()
    for k, cell in enumerate(cells):
        if cell.threads != threads:
            calls.clear()
            started = time.perf_counter()
            threads, calls = cell.threads, dict(opened(cell.threads))
            deadline += time.perf_counter() - started
        left = deadline - time.perf_counter()
        if not found or _expected(found, cell) <= left:
            share = max(left, 0.0) / (len(cells) - k)
            clock = time.process_time if processor and cell.threads == 1 else time.perf_counter
            drawn = _images(cell.batch, shape)
            images = {name: given[name](drawn) if name in given else drawn for name in calls}
            found.append((cell, _rounds(calls, images, share, clock)))
        step(1)
    return found


def _rounds(
    calls: Opened, images: Mapping[str, Given], seconds: float, clock: Callable[[], float]
) -> Done:
    """Run all files in turn until the time is over or enough is known."""
    for name, call in calls.items():  # memory is set up in the first run
        call(images[name])
    times: dict[str, list[float]] = {name: [] for name in calls}
    began, computed = time.perf_counter(), time.process_time()
    names = list(calls)
    for done in range(MOST_ROUNDS):
        spent = time.perf_counter() - began
        if done >= _FEWEST_ROUNDS and spent >= seconds:
            break
        if done >= _GOOD_ROUNDS and spent >= _ENOUGH:
            break
        # Who goes first meets a cache that the other left: both do so equally often.
        for name in names if done % 2 else reversed(names):
            started = clock()
            calls[name](images[name])
            times[name].append(clock() - started)
    spent = max(time.perf_counter() - began, 1e-9)
    rounds = min(len(values) for values in times.values())
    return Done(times, spent / rounds, (time.process_time() - computed) / spent)


def _expected(found: Sequence[tuple[Cell, Done]], cell: Cell) -> float:
    """Seconds that the fewest rounds of `cell` will take, by what is known of other batches."""
    known, done = found[-1]
    return done.round / known.batch * cell.batch * (_FEWEST_ROUNDS + 1)


def _images(batch: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    generator = np.random.default_rng(0)
    return generator.standard_normal((batch, *shape), dtype=np.float32)
