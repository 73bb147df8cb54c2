"""Filling tables: what is missing, when the time is up, what a record holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benchmarks.place import Place
from benchmarks.record import Record, append, read
from benchmarks.runner import Asked, Done, LeftOutError, expected, fill, missing
from benchmarks.table import Cell, Table

from datafree.errors import UnknownNameError
from datafree.progress import Noting, Progress, silent


@pytest.fixture
def place(root: Path) -> Place:
    return Place(root, root / "shared")


@pytest.fixture
def table(place: Place) -> Table:
    return Table.load(place.house / "tables" / "colours.yaml")


class Clock:
    """A clock that measuring moves: red cells take 10 seconds, blue ones 30."""

    def __init__(self) -> None:
        self.now = 100.0
        self.measured: list[str] = []

    def __call__(self) -> float:
        return self.now

    def measure(self, table: Table, cell: Cell, progress: Progress) -> dict[str, Any]:
        self.now += 10.0 if "red" in str(cell) else 30.0
        self.measured.append(str(cell))
        with progress("work", 2) as step:
            step(2)
        return {"top1": 90.0, "of": table.name}


def filled(table: Table, place: Place, clock: Clock, asked: Asked) -> Done:
    return fill(table, asked, place, clock.measure, silent, lambda _: None, clock)


def record_of(table: Table, day: str, **cell: Any) -> Record:
    return Record(
        table=table.name, cell=cell, measured={"top1": 1.0}, environment={"date": day}, seconds=5.0
    )


def test_a_cell_that_is_there_is_not_measured_again(table: Table, place: Place) -> None:
    clock, asked = Clock(), Asked({"size": ("W8A8",)}, command="the command")
    assert filled(table, place, clock, asked) == Done(4, ())
    first = read(place.records("colours"))[0]
    assert first.cell == {"size": "W8A8", "colour": "red", "seed": 0}
    assert first.measured == {"top1": 90.0, "of": "colours"}
    assert first.seconds == 10.0
    assert first.command == "the command"
    assert first.settings["bits"] == "W8A8"
    assert filled(table, place, clock, asked) == Done(0, ())
    assert filled(table, place, clock, Asked({})).measured == 4
    assert len(set(clock.measured)) == len(clock.measured) == 8


def test_cells_are_measured_again_where_that_is_asked(table: Table, place: Place) -> None:
    only = {"size": ("W8A8",), "seed": ("0",)}
    assert filled(table, place, Clock(), Asked(only)).measured == 2
    assert filled(table, place, Clock(), Asked(only, again=True)).measured == 2
    assert len(read(place.records("colours"))) == 4


def test_axes_and_seeds_choose_cells(table: Table, place: Place) -> None:
    chosen = missing(table, place, Asked({"colour": ("red",)}, seeds=(0, 1, 2)))
    assert {cell.seed for cell in chosen} == {0, 1, 2}
    assert len(chosen) == 6
    assert missing(table, place, Asked({"seed": ("1",)})) == table.wanted((1,))
    with pytest.raises(UnknownNameError, match="did you mean colour"):
        missing(table, place, Asked({"color": ("red",)}))


def test_parts_are_all_cells_each_once(table: Table, place: Place) -> None:
    whole = missing(table, place, Asked({}))
    parts = [missing(table, place, Asked({}, part=(k, 3))) for k in range(3)]
    assert sorted(map(str, (cell for part in parts for cell in part))) == sorted(map(str, whole))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_cells_that_were_overtaken_are_measured_again_where_that_is_asked(
    table: Table, place: Place
) -> None:
    for colour in ("red", "blue"):
        append(
            place.records("colours"),
            record_of(table, "2026-11-24", size="W8A8", colour=colour, seed=0),
        )
    assert len(missing(table, place, Asked({}))) == 6
    again = missing(table, place, Asked({}, stale=True))
    assert len(again) == 7
    assert "W8A8, blue, seed 0" in map(str, again)
    clock = Clock()
    filled(table, place, clock, Asked({"size": ("W8A8",), "seed": ("0",)}, stale=True))
    assert clock.measured == ["W8A8, blue, seed 0"]
    assert not missing(table, place, Asked({"size": ("W8A8",), "seed": ("0",)}, stale=True))


def test_what_another_process_measured_meanwhile_is_left_alone(table: Table, place: Place) -> None:
    clock = Clock()
    other = record_of(table, "2026-11-25", size="W4A4", colour="red", seed=0)

    def tell(line: str) -> None:
        if "W8A8, red, seed 0" in line:
            append(place.records("colours"), other)

    done = fill(table, Asked({"seed": ("0",)}), place, clock.measure, silent, tell, clock)
    assert done == Done(3, ())
    assert "W4A4, red, seed 0" not in clock.measured


@pytest.mark.parametrize(
    ("seconds", "measured", "guess"), [(5, 1, 10.0), (35, 2, 10.0), (65, 3, 20.0), (500, 4, None)]
)
def test_no_cell_is_begun_that_would_not_be_done_in_time(
    table: Table, place: Place, seconds: float, measured: int, guess: float | None
) -> None:
    """Red 10, blue 30, red 10, blue 30: 0, 10, 40, 50, 80 seconds have passed.

    The last shares its colour with one of 30 seconds and its size with one of 10.
    """
    clock = Clock()
    asked = Asked({"seed": ("0",)}, deadline=clock.now + seconds)
    done = filled(table, place, clock, asked)
    assert done.measured == measured
    assert len(done.missing) == 4 - measured
    assert done.expected == guess


def test_records_tell_how_long_a_cell_takes(table: Table, place: Place) -> None:
    append(
        place.records("colours"), record_of(table, "2026-11-25", size="W8A8", colour="red", seed=0)
    )
    clock = Clock()
    done = filled(table, place, clock, Asked({}, deadline=clock.now + 5.0))
    assert done == Done(0, done.missing, 5.0)
    assert len(done.missing) == 7


def test_a_cell_takes_as_long_as_those_most_like_it(table: Table) -> None:
    red, blue, other = table.wanted((0,))[:3]
    assert expected(other, {}) is None
    assert expected(other, {red: 10.0, blue: 30.0}) == 10.0  # both W4A4 and red
    assert expected(blue, {red: 10.0}) == 10.0


def test_the_bar_shows_the_cell_at_hand_in_words(table: Table, place: Place) -> None:
    notes: list[str] = []

    class Bar(Noting):
        def __call__(self, done: int, /) -> None:
            notes.append(f"+{done}")

        def note(self, text: str) -> None:
            notes.append(text)

    clock, said = Clock(), list[str]()
    fill(
        table, Asked({"seed": ("0",), "size": ("W8A8",)}), place, clock.measure,
        one_bar(Bar()), said.append, clock,
    )  # fmt: skip
    assert notes == ["work 2/2", "", "+1"] * 2
    assert said[0] == "colours: W8A8, red, seed 0: top1 90.00 (10 s, 1 left)"


def one_bar(step: Noting) -> Callable[[str, int], Any]:
    from contextlib import nullcontext

    return lambda _description, _total: nullcontext(step)


def test_a_cell_that_cannot_be_measured_here_is_left_out_and_the_others_are_measured(
    table: Table, place: Place
) -> None:
    told: list[str] = []

    def measure(table: Table, cell: Cell, progress: Progress) -> dict[str, Any]:
        if "red" in str(cell):
            raise LeftOutError("there is no red here")
        return {"top1": 90.0}

    only = Asked({"seed": ("0",)})
    done = fill(table, only, place, measure, silent, told.append)
    assert done.measured == 2
    assert [str(cell) for cell in done.missing] == ["W8A8, red, seed 0", "W4A4, red, seed 0"]
    assert told[0] == "colours: W8A8, red, seed 0: left out: there is no red here"
    assert [record.cell["colour"] for record in read(place.records("colours"))] == ["blue"] * 2
