"""Published results beside ours: numbers by hand, what is refused, and the file of the house."""

from __future__ import annotations

import csv
import shlex
from pathlib import Path
from typing import Any

import pytest
from benchmarks.__main__ import app
from benchmarks.page import Source
from benchmarks.place import Place
from benchmarks.record import Record, latest
from benchmarks.reproduction import blocks_in, chosen, render
from benchmarks.table import Table, load_tables
from benchmarks.targets import Target, command, commands, read, written

from benchmarks import published
from datafree.errors import ConfigError, UnknownNameError

PLACE = Place.here()
TABLES = load_tables(PLACE.house / "tables")
ROWS = read(PLACE.targets)
PAGE = PLACE.pages / "reproduction.md"
MACHINE = {"cpu": "Abacus", "cores": 10, "torch": "2.13.0", "date": "2026-11-26"}
HEAD = "method,dataset,arch,W,A,top1,source,state,table,cell,missing\n"


@pytest.fixture
def table(root: Path) -> Table:
    return Table.load(root / "benchmarks" / "tables" / "colours.yaml")


def a_record(size: str, colour: str, seed: int, top1: float) -> Record:
    return Record(
        table="colours", cell={"size": size, "colour": colour, "seed": seed},
        measured={"top1": top1, "test_images": 360}, environment=MACHINE, commit=f"c{seed}",
    )  # fmt: skip


def sources(table: Table, *records: Record) -> Any:
    found = {record.of(table): record for record in records}
    tables = {table.name: Source(table, found)}

    def of(name: str) -> Source:
        if name not in tables:
            raise UnknownNameError("table", name, tables)
        return tables[name]

    return of


def a_target(method: str, top1: str, colour: str = "", **more: str) -> Target:
    fields = {
        "method": method, "dataset": "cifar10", "arch": "resnet20", "W": "8", "A": "8",
        "top1": top1, "source": "T2", "state": "repeated", "table": "colours",
        "cell": f"size=W8A8; colour={colour}", **more,
    }  # fmt: skip
    return Target.model_validate(fields)


NOT_RUN = {"state": "not run", "table": "", "cell": "", "missing": "a network"}
RECORDS = (a_record("W8A8", "red", 0, 80.0), a_record("W8A8", "red", 1, 82.0),
           a_record("W8A8", "blue", 0, 90.5))  # fmt: skip


def test_our_columns_come_from_records(table: Table) -> None:
    """80 and 82 have the mean 81 and the deviation sqrt(2)."""
    rows = [a_target("a", "91.5", "red"), a_target("b", "9*", **NOT_RUN)]
    first, second = csv.DictReader(written(rows, sources(table, *RECORDS)).splitlines())
    assert (first["ours"], first["spread"], first["seeds"]) == ("81.00", "1.41", "0 1")
    assert first["commit"] == "c0 c1"
    again = "python -m benchmarks run colours --only size=W8A8 --only colour=red --again"
    assert first["command"] == again
    assert [second[name] for name in ("ours", "spread", "seeds", "command", "commit")] == [""] * 5
    assert first["top1"] == "91.5"


def test_what_was_written_by_hand_into_our_columns_is_overwritten(table: Table) -> None:
    row = a_target("a", "91.5", "red", ours="99.99", commit="mine")
    assert "99.99" not in written([row], sources(table, *RECORDS))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a,d,n,8,8,91,T2,,,,", "line 2: state"),
        ("a,d,n,8,8,91,T2,measured,,,", "line 2: state"),
        ("a,d,n,8,8,91,T2,repeated,colours,,", "names its table and cell"),
        ("a,d,n,8,8,91,T2,repeated,colours,size=W8A8,a network", "names its table and cell alone"),
        ("a,d,n,8,8,91,T2,not run,,,", "says what is missing"),
        ("a,d,n,8,8,91,T2,not run,colours,,a network", "names no cell"),
    ],
)
def test_a_row_without_its_state_is_refused(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "targets.csv").write_text(f"{HEAD}{line}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        read(tmp_path / "targets.csv")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"table": "colors"}, "line 2: unknown table 'colors': did you mean colours"),
        ({"cell": "size=W8A8; shape=red"}, "unknown axis of colours 'shape'"),
        ({"cell": "size=W8A8; colour=rod"}, "unknown value of colour of colours 'rod'"),
        ({"cell": "size=W8A8"}, "line 2: the cell leaves colour open"),
        ({"cell": "size=W8A8; red"}, "'red' is no pair"),
        ({"cell": "size=W4A4; colour=red"}, "line 2: not measured: python -m benchmarks run"),
    ],
)
def test_a_cell_that_is_not_there_is_refused(
    table: Table, change: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        written([a_target("a", "91.5", "red", **change)], sources(table, *RECORDS))


def test_a_cell_that_the_table_does_not_want_is_refused(table: Table) -> None:
    """Its command would measure nothing."""
    fewer = Table.model_validate({**table.model_dump(), "cells": [{"colour": "blue"}]})
    with pytest.raises(ConfigError, match="has no cell size=W8A8; colour=red"):
        written([a_target("a", "91.5", "red")], sources(fewer, *RECORDS))


def test_cells_that_differ_in_one_axis_share_a_command() -> None:
    cells = [("W8A8", "red"), ("W8A8", "blue"), ("W4A4", "red"), ("W4A4", "blue"), ("W2A2", "red")]
    rows = [a_target("a", "9", cell=f"size={size}; colour={colour}") for size, colour in cells]
    assert commands(rows) == [
        "python -m benchmarks run colours --only size=W8A8 --only size=W4A4 --only size=W2A2"
        " --only colour=red --again",
        "python -m benchmarks run colours --only size=W8A8 --only size=W4A4 --only colour=blue"
        " --again",
    ]
    assert commands(rows[:4]) == [
        "python -m benchmarks run colours --only size=W8A8 --only size=W4A4 --only colour=red"
        " --only colour=blue --again"
    ]
    assert shlex.split(command("t", {"row": ("gdfq, DSG's schedule",)}))[5:7] == [
        "--only", "row=gdfq, DSG's schedule",
    ]  # fmt: skip


def block(table: Table, *rows: Target) -> str:
    text = "Before.\n<!-- targets: T2 cifar10 -->\nold\n<!-- end -->\nAfter.\n"
    made = render(text, rows, sources(table, *RECORDS))
    assert made.startswith("Before.\n") and made.endswith("<!-- end -->\nAfter.\n")
    assert "old" not in made
    assert render(made, rows, sources(table, *RECORDS)) == made
    return made


def test_a_block_by_hand(table: Table) -> None:
    """The built-in network has 99.72: 81 and 90.5 lose 18.72 and 9.22."""
    made = block(
        table, a_target("fp32", "94.1", **NOT_RUN, W="32", A="32"), a_target("a", "91.6", "red"),
        a_target("b|x=1", "90.1", "blue"), a_target("c", "88", **NOT_RUN, W="4", A="4"),
    )  # fmt: skip
    assert "| a | W8A8 | 91.6 | 2.50 | 81.00 ± 1.41 | 18.72 | repeated |" in made
    assert "| b (x=1) | W8A8 | 90.1 | 4.00 | 90.50 | 9.22 | repeated |" in made
    assert "**Not run.** Missing: a network.\n\n| method | float | W4A4 |" in made
    assert "| c | – | 88 |" in made  # noqa: RUF001
    assert "policy `all`" in made
    assert "differ in one thing: 1 with a row of one seed" in " ".join(made.split())
    assert "--only colour=red --only colour=blue --again\n```" in made


@pytest.mark.parametrize(
    ("published", "ours", "said"),
    [
        (("91", "92"), (80.0, 81.0), "thing: 1 in the paper's order."),
        (("92", "91"), (80.0, 81.0), "thing: 1 the other way round."),
        (("92", "91"), (80.0, 80.1), "thing: 1 nearer to each other than"),
    ],
)
def test_orders_count_beyond_the_spread(
    table: Table, published: tuple[str, str], ours: tuple[float, float], said: str
) -> None:
    """Seeds 0.2 apart have a deviation of 0.14, and so the difference one of 0.2."""
    records = [
        a_record("W8A8", colour, seed, top1 + 0.2 * seed)
        for colour, top1 in zip(("red", "blue"), ours, strict=True)
        for seed in (0, 1)
    ]
    rows = [a_target("a", published[0], "red"), a_target("b", published[1], "blue")]
    page = "<!-- targets: T2 -->\n<!-- end -->\n<!-- targets: summary -->\n<!-- end -->"
    one, summary = render(page, rows, sources(table, *records)).split("<!-- end -->")[:2]
    assert said in " ".join(one.split()) and said in " ".join(summary.split())
    assert "| all | 2 | 0 | 2 | 0 |" in summary


def test_a_block_that_is_nobodys_is_refused(table: Table) -> None:
    with pytest.raises(UnknownNameError, match="unknown source of targets 'T9'"):
        render("<!-- targets: T9 -->\n<!-- end -->", ROWS, sources(table))
    with pytest.raises(ConfigError, match=r"no row of targets\.csv belongs to 'T2 mnist'"):
        render("<!-- targets: T2 mnist -->\n<!-- end -->", ROWS, sources(table))


# --- the file and the page of the house ----------------------------------------------------------


def house(name: str) -> Source:
    return Source(TABLES[name], latest(TABLES[name], PLACE))


def test_the_file_says_what_records_say() -> None:
    text = PLACE.targets.read_text(encoding="utf-8")
    assert written(ROWS, house, published.command) == text, "run `python -m benchmarks render`"


def test_the_page_says_what_file_and_records_say() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert render(text, ROWS, house) == text, "run `python -m benchmarks render`"


def test_the_page_shows_every_row_once() -> None:
    words = [words for words in blocks_in(PAGE.read_text(encoding="utf-8")) if words != "summary"]
    shown = [id(row) for one in words for row in chosen(ROWS, one)]
    assert sorted(shown) == sorted(map(id, ROWS))


def test_every_name_of_a_published_network_is_a_papers() -> None:
    known = {(row.source[0], row.dataset, row.arch) for row in ROWS}
    assert set(published.NETWORKS) <= known
    assert {data for _, data, _ in published.NETWORKS} <= set(published.DATA)


def test_published_numbers_are_those_of_the_papers() -> None:
    """The file has a row for every line of the reference, which it does not change."""
    reference = PLACE.shared / "reference" / "targets.csv"
    if not reference.exists():
        pytest.skip("there is no shared data")
    with reference.open(encoding="utf-8") as file:
        theirs = [tuple(row.values()) for row in csv.DictReader(file)]
    ours = [(r.method, r.dataset, r.arch, r.W, r.A, r.top1, r.source) for r in ROWS]
    assert ours == theirs


def test_commands_of_the_file_can_be_pasted() -> None:
    """They parse, and choose the cell of their row."""
    for row in (row for row in ROWS if row.run):
        words = shlex.split(row.command)
        assert words[:3] == ["python", "-m", "benchmarks"]
        context = app.make_context("benchmarks", list(words[3:]))
        name, command_, rest = app.resolve_command(context, words[3:])
        assert command_ is not None and name == "run"
        asked = command_.make_context(name, rest, parent=context).params
        assert asked["names"] == (row.table,) and asked["again"]
        pairs = dict(pair.split("=", 1) for pair in asked["chosen"])
        wanted = TABLES[row.table].wanted()
        own = {axis: (value,) for axis, value in pairs.items()}
        assert [cell for cell in wanted if cell.within(own)], row.command
        assert own == row.where


def test_rows_that_were_not_run_have_a_command_where_the_network_has_a_name() -> None:
    """Those of the page are taken apart by the tests of documented commands."""
    own = a_target("zeroq", "8.20", **NOT_RUN, source="T3a", dataset="imagenet", arch="resnet50")
    told = "datafree quantize pytorchcv:resnet50 --data imagenet/val --bits W8A8 "
    assert published.command(own).startswith(told)
    assert "--method zeroq" in published.command(own)
    for change in ({"arch": "resnet999"}, {"method": "ocs(real)"}, {"W": "32", "A": "32"}):
        assert published.command(own.model_copy(update=change)) == ""
    assert written([own], house, published.command).count(told) == 1


def test_only_what_is_the_papers_is_called_reproduced() -> None:
    """No network of the house has the weights of a paper; the first that has is to be added."""
    assert not [row for row in ROWS if row.state == "reproduced"]
