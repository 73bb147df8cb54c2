"""Pages: numbers by hand, marks of old records, what must not stand in one table, upkeep."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from benchmarks.page import Source, markdown, render, tables_in
from benchmarks.place import Place
from benchmarks.record import Record, latest
from benchmarks.reproduction import blocks_in
from benchmarks.table import Table, load_tables

from benchmarks import attacks
from datafree.errors import ConfigError, UnknownNameError

PLACE = Place.here()
PAGES = sorted(PLACE.pages.glob("*.md"))
TABLES = load_tables(PLACE.house / "tables")
MACHINE = {"cpu": "Abacus", "cores": 10, "torch": "2.13.0", "date": "2026-11-26"}


@pytest.fixture
def table(root: Path) -> Table:
    return Table.load(root / "benchmarks" / "tables" / "colours.yaml")


def a_record(size: str, colour: str, seed: int, top1: float, **more: Any) -> Record:
    return Record(
        table="colours", cell={"size": size, "colour": colour, "seed": seed},
        measured={"top1": top1, "test_images": 360, **more}, environment=MACHINE,
    )  # fmt: skip


def of(table: Table, records: Iterable[Record]) -> Source:
    return Source(table, {record.of(table): record for record in records})


def test_a_view_of_what_no_record_has_is_none(table: Table) -> None:
    told = a_record("W8A8", "red", 0, 80.0).model_dump()
    told["measured"] = {"test_images": 360}
    assert markdown(of(table, [Record.model_validate(told)]), "top1") == "None.\n"
    assert "Nothing is measured yet" in markdown(of(table, []), "top1")


def test_a_table_by_hand(table: Table) -> None:
    """80 and 82 have the mean 81 and the deviation sqrt(2)."""
    records = [
        a_record("W8A8", "red", 0, 80.0, stages={"all": 7.4}), a_record("W8A8", "red", 1, 82.0),
        a_record("W4A4", "blue", 0, 50.06),
    ]  # fmt: skip
    grid, caption = markdown(of(table, records), "top1").split("\n\n")
    assert grid.splitlines() == [
        "| colour | W8A8 | W4A4 | seconds |",
        "| --- | --- | --- | --- |",
        "| red | 81.0 ± 1.4 | – | 7 |",  # noqa: RUF001
        "| a kind of blue | – | 50.1 | – |",  # noqa: RUF001
    ]
    assert caption.replace("\n", " ").strip() == (
        "The built-in ResNet-8 on digits (float 99.72), 360 test images; policy `all`, every layer"
        " input quantized, one weight grid per channel; seeds 0, 1, mean ± standard deviation where"
        " there is more than one. Abacus, 10 cores, torch 2.13.0, 2026-11-26;"
        " `python -m benchmarks run colours`."
    )


def test_a_record_from_before_a_change_is_marked(table: Table) -> None:
    old = {**MACHINE, "date": "2026-11-24"}
    blue = a_record("W8A8", "blue", 0, 70.0).model_copy(update={"environment": old})
    red = a_record("W8A8", "red", 0, 80.0).model_copy(update={"environment": old})
    text = markdown(of(table, [blue, red]), "top1")
    assert "| a kind of blue | 70.0† |" in text
    assert "| red | 80.0 |" in text
    assert text.endswith("† Measured before 2026-11-25, when blue became darker.\n")
    assert "†" not in markdown(of(table, [a_record("W8A8", "blue", 0, 70.0), red]), "top1")


def test_nothing_measured(table: Table) -> None:
    text = markdown(of(table, []), "top1")
    assert text.endswith("Nothing is measured yet: `python -m benchmarks run colours`.\n")


def test_values_beside_others_texts_and_units(table: Table) -> None:
    columns = [
        {"name": "a", "beside": "last"},
        {"name": "b", "value": "bytes", "factor": 0.001},
        {"name": "c", "value": "bits"},
    ]
    view = {"rows": ["colour"], "columns": columns, "where": {"size": "W8A8"}}
    changed = Table.model_validate({**table.model_dump(), "views": {"v": view}})
    record = a_record("W8A8", "red", 0, 80.0, last=79.0, bytes=1500, bits="844")
    assert "| red | 80.0 (79.0) | 1.5 | 844 |" in markdown(of(changed, [record]), "v")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"axes": {"size": {"W8A8": {"policy": "brecq"}, "W4A4": {}}}}, "mixes policy all and"),
        ({"axes": {"size": {"W8A8": {"placement": "after_activation"}, "W4A4": {}}}}, "mixes pla"),
        ({"axes": {"size": {"W8A8": {"model": "lenet5_mnist"}, "W4A4": {}}}}, "mixes model"),
        ({"views": {"top1": {"rows": ["colour"], "columns": [{"name": "x"}]}}}, "leaves an axis"),
    ],
)
def test_what_does_not_compare_stands_in_no_table(
    table: Table, change: dict[str, Any], said: str
) -> None:
    fields = table.model_dump()
    for name, value in change.items():
        fields[name] = {**fields[name], **value}
    base = {"model": "digits_resnet8", "bits": "W8A8"}
    changed = Table.model_validate({**fields, "base": base})
    records = [a_record(size, "red", 0, 80.0) for size in ("W8A8", "W4A4")]
    with pytest.raises(ConfigError, match=said):
        markdown(of(changed, records), "top1")


def test_networks_of_an_axis_are_counted(table: Table) -> None:
    axes = {"network": {"a": {"model": "digits_resnet8"}, "b": {"model": "lenet5_mnist"}}}
    view = {"rows": ["network"], "columns": [{"name": "s", "value": "spent"}]}
    changed = Table.model_validate(
        {**table.model_dump(), "axes": axes, "changed": (), "views": {"v": view}}
    )
    records = [
        Record(
            table="colours", cell={"network": name, "seed": 0}, measured={"spent": 1.0},
            environment=MACHINE,
        )
        for name in axes["network"]
    ]  # fmt: skip
    assert "\n\n2 networks; seed 0. Abacus, 10 cores" in markdown(of(changed, records), "v")
    assert "\n\nThe built-in ResNet-8 on digits" in markdown(of(changed, records[:1]), "v")


def test_an_unknown_view_is_refused(table: Table) -> None:
    with pytest.raises(UnknownNameError, match="did you mean top1"):
        markdown(of(table, []), "top")


def test_only_what_stands_between_the_comments_is_made_anew(table: Table) -> None:
    text = "Before.\n\n<!-- table: colours top1 -->\nold\n<!-- end -->\n\nAfter.\n"
    made = render(text, lambda _: of(table, [a_record("W8A8", "red", 0, 80.0)]))
    assert made.startswith("Before.\n\n<!-- table: colours top1 -->\n\n| colour |")
    assert made.endswith("\n\n<!-- end -->\n\nAfter.\n")
    assert "old" not in made
    assert render(made, lambda _: of(table, [a_record("W8A8", "red", 0, 80.0)])) == made
    assert render(text, lambda _: of(table, []), only=["others"]) == text
    assert tables_in(text) == [("colours", "top1")]


# --- the pages of the house ----------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_a_page_shows_what_the_records_say(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    made = render(text, lambda name: Source(TABLES[name], latest(TABLES[name], PLACE)))
    assert made == text, "run `python -m benchmarks render`"


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_a_page_can_be_read(page: Path) -> None:
    """Lines under 100 characters, no paragraph over five lines; tables and code are exempt."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for paragraph in re.split(r"\n\s*\n|\n(?=[*-] )", text):
        lines = paragraph.strip().splitlines()
        if lines and not lines[0].startswith(("|", "```", "<!--")):
            assert len(lines) <= 5, paragraph
            assert max(map(len, lines)) < 100, paragraph


def test_every_page_shows_a_table_and_is_linked() -> None:
    index = (PLACE.pages / "index.md").read_text(encoding="utf-8")
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert tables_in(text) or attacks.tables_in(text) or blocks_in(text), page
        if page.stem != "index":
            assert f"({page.name})" in index
            assert re.search(rf"^{page.stem}$", index, re.MULTILINE), "in the toctree"


def test_every_view_stands_on_a_page() -> None:
    pages = [page.read_text(encoding="utf-8") for page in PLACE.rendered]
    shown = {pair for text in pages for pair in tables_in(text)}
    assert shown == {(name, view) for name, table in TABLES.items() for view in table.views}
