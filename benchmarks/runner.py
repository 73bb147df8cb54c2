"""Filling a table: which cells are missing, how long one will take, one record for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from benchmarks.place import Place
from benchmarks.record import Record, append, commit, environment, latest
from benchmarks.table import Cell, Table, Where
from datafree.errors import DatafreeError
from datafree.progress import Progress, Step, beside
from datafree.sweeps.plan import shard

Measure = Callable[[Table, Cell, Progress], dict[str, Any]]
Bar = Callable[[str, int], AbstractContextManager[Step]]


class LeftOutError(DatafreeError):
    """A cell that cannot be measured here, where others of its table can; the message says why."""


@dataclass(frozen=True)
class Asked:
    """What a call of ``run`` asks for.

    Attributes:
        only: values of axes; all where none are given.
        seeds: instead of the tables' own.
        stale: measure cells again that a change of the library has overtaken.
        again: measure cells again, whatever there is of them.
        part: (i, n), every n-th of the cells that were asked for from the i-th on; None is all.
        deadline: moment of the clock by which all cells are done; None is no limit.
        command: for the records.
    """

    only: Where
    seeds: tuple[int, ...] | None = None
    stale: bool = False
    again: bool = False
    part: tuple[int, int] | None = None
    deadline: float | None = None
    command: str = ""


@dataclass(frozen=True)
class Done:
    """What a call of ``run`` did to one table.

    Attributes:
        measured: cells.
        missing: cells that are still not there, those that were left out among them.
        expected: seconds of the first that is missing, where the time did not suffice for it.
    """

    measured: int
    missing: tuple[Cell, ...]
    expected: float | None = None


def missing(table: Table, place: Place, asked: Asked) -> tuple[Cell, ...]:
    """The cells that were asked for and have no record, or one that does not count.

    Raises:
        UnknownNameError: ``asked.only`` names an axis or a value the table does not have.
    """
    table.check(asked.only)
    found = latest(table, place)
    fresh = {c for c, record in found.items() if not (asked.stale and record.overtaken(table))}
    wanted = tuple(cell for cell in table.wanted(asked.seeds) if cell.within(asked.only))
    return tuple(c for c in shard(wanted, asked.part) if asked.again or c not in fresh)


def expected(cell: Cell, seconds: Mapping[Cell, float]) -> float | None:
    """Seconds that `cell` will take: the mean of the measured ones most like it.

    Likest are those that share most values of axes. None where none was measured.
    """
    if not seconds:
        return None
    own = set(cell.values)
    likeness = {other: len(own & set(other.values)) for other in seconds}
    most = max(likeness.values())
    like = [seconds[other] for other, shared in likeness.items() if shared == most]
    return sum(like) / len(like)


def fill(  # noqa: PLR0913 - what a call is about, and who hears of it
    table: Table,
    asked: Asked,
    place: Place,
    measure: Measure,
    bar: Bar,
    tell: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> Done:
    """Measure the missing cells of a table one after the other, a record for each.

    Cells that another process measured meanwhile are not measured again, and those that cannot be
    measured here are left out. Where there is a deadline, no cell is begun that would not be done
    by then, judged by those that were measured before: by this call, or else by the records.

    Args:
        table: to fill.
        asked: which of its cells, and until when.
        place: of its records.
        measure: measures a cell.
        bar: opened for all cells; shows in words how far the one at hand is.
        tell: called with a line for every cell.
        clock: seconds since some moment.
    """
    wanted, head = missing(table, place, asked), commit(place.root)
    found = latest(table, place).items()
    earlier = {cell: record.seconds for cell, record in found if record.seconds is not None}
    own: dict[Cell, float] = {}
    left_out: list[Cell] = []
    with bar(table.name, len(wanted)) as step:
        for number, cell in enumerate(wanted):
            if cell in missing(table, place, asked):
                begun, guess = clock(), expected(cell, own or earlier) or 0.0
                if asked.deadline is not None and begun + guess >= asked.deadline:
                    return Done(len(own), (*left_out, *wanted[number:]), guess)
                try:
                    measured = measure(table, cell, beside(step))
                except LeftOutError as reason:
                    tell(f"{table.name}: {cell}: left out: {reason}")
                    left_out.append(cell)
                    step(1)
                    continue
                own[cell] = clock() - begun
                record = Record(
                    table=table.name, cell=cell.as_dict(), measured=measured,
                    seconds=round(own[cell], 1), settings=table.fields(cell),
                    environment=environment(), command=asked.command, commit=head,
                )  # fmt: skip
                append(place.records(table.name), record)
                left = len(wanted) - number - 1
                tell(f"{table.name}: {cell}: {_words(measured)} ({own[cell]:.0f} s, {left} left)")
            step(1)
    return Done(len(own), tuple(left_out))


def _words(measured: Mapping[str, Any]) -> str:
    numbers = {name: value for name, value in measured.items() if isinstance(value, float)}
    return ", ".join(f"{name} {value:.2f}" for name, value in list(numbers.items())[:4])
