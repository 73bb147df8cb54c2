"""Tables: which cells there are, and that all those of the house can be measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks.kinds import kind_and_config
from benchmarks.networks import NETWORKS
from benchmarks.place import Place
from benchmarks.public import is_public
from benchmarks.record import latest
from benchmarks.table import Cell, Table, choose, load_tables

from datafree.config import RunConfig, build
from datafree.errors import ConfigError, UnknownNameError
from datafree.recipes import recipe_fields
from datafree.synthesis.genie import Genie

PLACE = Place.here()
TABLES = load_tables(PLACE.house / "tables")


def a_table(**fields: Any) -> Table:
    given: dict[str, Any] = {
        "name": "small", "title": "small", "base": {"method": "dsg", "method_options": {"a": 1}},
        "axes": {"bits": ["W8A8", "W4A4"], "images": {"noise": {"method": "noise"}, "dsg": {}}},
        "seeds": [0, 1],
    }  # fmt: skip
    return Table(**given | fields)


def test_all_combinations_are_wanted_seed_by_seed() -> None:
    cells = [str(cell) for cell in a_table().wanted()]
    assert cells == [
        "W8A8, noise, seed 0", "W8A8, dsg, seed 0", "W4A4, noise, seed 0", "W4A4, dsg, seed 0",
        "W8A8, noise, seed 1", "W8A8, dsg, seed 1", "W4A4, noise, seed 1", "W4A4, dsg, seed 1",
    ]  # fmt: skip


def test_blocks_choose_cells_and_seeds_once_each() -> None:
    blocks = [{"bits": "W8A8", "seed": 2}, {"images": ["dsg"], "bits": ["W8A8"], "seed": [2, 3]}]
    table = a_table(cells=blocks)
    assert [str(cell) for cell in table.wanted()] == [
        "W8A8, noise, seed 2", "W8A8, dsg, seed 2", "W8A8, dsg, seed 3",
    ]  # fmt: skip
    assert {cell.seed for cell in table.wanted((0, 1, 2))} == {0, 1, 2}
    assert len(table.wanted((0,))) == 2


def test_values_change_the_base_one_after_the_other() -> None:
    table = a_table()
    dsg = table.fields(Cell((("bits", "W4A4"), ("images", "dsg")), 3))
    assert dsg == {
        "kind": "run", "method": "dsg", "method_options": {"a": 1}, "bits": "W4A4", "seed": 3,
    }  # fmt: skip
    noise = table.fields(Cell((("bits", "W4A4"), ("images", "noise")), 3))
    assert noise["method"] == "noise"
    assert noise["method_options"] == {}  # of another method


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"cells": [{"bit": "W8A8"}]}, "did you mean bits"),
        ({"cells": [{"bits": "W8A9"}]}, "choose from W4A4, W8A8"),
        ({"cells": [{"seed": "first"}]}, "no whole number"),
        ({"changed": [{"date": "2026-11-25", "where": {"x": 1}, "what": "y"}]}, "axis of small"),
        ({"views": {"a": {"rows": ["image"], "columns": ["bits"]}}}, "did you mean images"),
        ({"views": {"a": {"rows": ["images"], "columns": ["bit"]}}}, "did you mean bits"),
    ],
)
def test_names_the_table_does_not_have_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UnknownNameError if "no whole" not in said else ConfigError, match=said):
        a_table(**fields)


def test_a_file_that_is_no_table_is_named(tmp_path: Path) -> None:
    for text, said in (
        ("- a list", "expected keys"),
        ("title: [", "cannot read table"),
        ("tile: x\naxes: {}", r"did you mean title\?"),
    ):
        path = tmp_path / "bad.yaml"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=said):
            Table.load(path)


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean ranges"):
        choose(TABLES, ["range"])
    assert choose(TABLES, []) == list(TABLES.values())


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_every_cell_can_be_measured(table: Table) -> None:
    for cell in table.wanted():
        _, config = kind_and_config(table.fields(cell), f"{table.name}, {cell}")
        assert config.model in NETWORKS or is_public(config.model)
        assert config.seed == cell.seed


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_every_record_is_a_cell_of_its_table(table: Table) -> None:
    for cell, record in latest(table, PLACE).items():
        assert set(record.cell) == {*table.axes, "seed"}
        table.check({axis: (value,) for axis, value in cell.values})
        assert record.table == table.name
        assert record.environment["date"]


def test_the_recipe_tuned_is_what_its_table_measured() -> None:
    table = TABLES["tuned"]
    cell = next(cell for cell in table.wanted() if ("afterwards", "fine-tuned") in cell.values)
    _, measured = kind_and_config(table.fields(cell), "a cell")
    named = {"model": measured.model, "bits": "W2A2", "policy": "brecq"}
    chosen = build(RunConfig, {**recipe_fields("tuned"), **named}, "tuned")
    for field in ("images", "calibrator", "calibrator_options", "reconstruction", "training",
                  "reconstruction_options", "training_options"):  # fmt: skip
        assert getattr(chosen, field) == getattr(measured, field), field
    assert recipe_fields("tuned")["method"].split(",")[0] == measured.method
    given = Genie.model_validate(chosen.method_options)
    assert given == Genie.model_validate(measured.method_options)
    assert chosen.scheme.weight_range == measured.scheme.weight_range


def test_a_field_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigError, match="tall is neither a field of a run nor of the kind run"):
        kind_and_config({"kind": "run", "model": "x", "tall": True}, "a cell")
    with pytest.raises(UnknownNameError, match="did you mean ranges"):
        kind_and_config({"kind": "range", "model": "x"}, "a cell")
