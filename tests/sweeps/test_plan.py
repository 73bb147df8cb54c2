"""Cells of a sweep: products, names of folders, mistakes in one line."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from datafree.config import RunConfig
from datafree.errors import ConfigError, UntrustedCodeError
from datafree.recipes import recipe_fields
from datafree.sweeps.plan import as_file, check_code, load_plan, plan_of, shard

AXES = {"method": ["zeroq", "dsg"], "bits": ["W8A8", "W4A4"], "seed": [0, 1, 2]}
BASE = {"model": "digits_resnet8", "images": 4}


def test_cells_are_the_product_of_the_axes_in_order() -> None:
    cells = plan_of({"base": BASE, "axes": AXES}, "sweep").runs("sweep")
    wanted = [*product(("zeroq", "dsg"), ("W8A8", "W4A4"), ("0", "1", "2"))]
    assert [tuple(value for _, value in cell.values) for cell in cells] == wanted
    assert cells[4].config == RunConfig(
        model="digits_resnet8", images=4, method="zeroq", bits="W4A4", seed=1
    )
    assert (str(cells[4]), cells[4].name) == ("zeroq, W4A4, seed 1", "zeroq-W4A4-1")


def test_a_named_value_changes_several_settings_and_adds_options() -> None:
    axes = {
        "case": {
            "few": {"method": "zeroq", "method_options": {"iterations": 3}},
            "as it was": None,
        }
    }
    base = {**BASE, "method": "zeroq", "method_options": {"lr": 0.2}}
    few, same = plan_of({"base": base, "axes": axes}, "sweep").runs("sweep")
    assert few.config.method_options == {"lr": 0.2, "iterations": 3}
    assert same.config.method_options == {"lr": 0.2}
    assert few.name == "few"
    assert same.name.startswith("as_it_was-") and len(same.name) == len("as_it_was-") + 8


def test_a_recipe_is_an_axis_and_other_settings_lie_over_it() -> None:
    axes = {"recipe": ["fast", "balanced"]}
    fast, balanced = plan_of({"base": BASE, "axes": axes}, "sweep").runs("sweep")
    assert fast.config.calibrator == recipe_fields("fast")["calibrator"]
    assert balanced.config.reconstruction == "adaround"
    assert balanced.config.images == 4


def test_blocks_choose_cells_and_each_is_there_once() -> None:
    blocks = [{"method": "zeroq", "seed": [0, 1]}, {"bits": "W4A4", "seed": 0}]
    cells = plan_of({"base": BASE, "axes": AXES, "cells": blocks}, "sweep").runs("sweep")
    assert [cell.name for cell in cells] == [
        "zeroq-W8A8-0", "zeroq-W8A8-1", "zeroq-W4A4-0", "zeroq-W4A4-1", "dsg-W4A4-0",
    ]  # fmt: skip


def test_a_name_does_not_depend_on_other_cells() -> None:
    more = {**AXES, "seed": [0, 1, 2, 3], "bits": ["W2A2", "W4A4", "W8A8"]}
    few, many = (
        {c.name: c.config for c in plan_of({"base": BASE, "axes": axes}, "sweep").runs("sweep")}
        for axes in (AXES, more)
    )
    assert few.items() <= many.items() or all(many[name] == few[name] for name in few)


@given(
    st.lists(
        st.tuples(st.text(min_size=1, max_size=90), st.text(min_size=1, max_size=3)),
        min_size=2,
        max_size=6,
        unique=True,
    )
)
def test_folders_of_different_values_differ(values: list[tuple[str, str]]) -> None:
    from datafree.sweeps import plan

    name_of = plan._folder  # pyright: ignore[reportPrivateUsage]
    names = [name_of((("a", one), ("b", two))) for one, two in values]
    assert len(set(names)) == len(names)
    for name in names:
        assert Path(name).name == name and name not in (".", "..") and len(name) < 100


def test_parts_are_all_cells_each_once() -> None:
    cells = plan_of({"base": BASE, "axes": AXES}, "sweep").runs("sweep")
    parts = [shard(cells, (k, 5)) for k in range(5)]
    assert sorted(c.name for part in parts for c in part) == sorted(c.name for c in cells)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert shard(cells, None) == cells


def test_a_plan_is_read_again(tmp_path: Path) -> None:
    axes = {**AXES, "export": [True, False], "limit": [None, 5], "recipe": ["fast"]}
    plan = plan_of({"base": BASE, "axes": axes, "cells": [{"export": False}]}, "sweep")
    (tmp_path / "sweep.yaml").write_text(as_file(plan), encoding="utf-8")
    assert load_plan(tmp_path / "sweep.yaml") == plan
    assert [c.config for c in load_plan(tmp_path / "sweep.yaml").runs("x")] == [
        c.config for c in plan.runs("x")
    ]


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ("text", ("sweep f.yaml", "axes")),
        ({"base": BASE}, ("sweep f.yaml", "axes")),
        ({"base": BASE, "axes": {"bits": []}}, ("bits has no values",)),
        ({"base": BASE, "axes": {"bits": ["W4A4", "W4A4"]}}, ("bits has W4A4 twice",)),
        ({"base": BASE, "axes": {"bits": [["W4A4"]]}}, ("bits lists", "name it")),
        ({"base": BASE, "axes": {"bits": {"a": 3}}}, ("axes.bits.a",)),
        ({"base": BASE, "axis": AXES, "axes": AXES}, ("axis is not known", "axes")),
        ({"base": BASE, "axes": AXES, "cells": [{"bit": "W4A4"}]}, ("unknown axis 'bit'", "bits")),
        ({"base": BASE, "axes": AXES, "cells": [{"bits": "W3"}]}, ("value of bits 'W3'",)),
        ({"base": {"imagez": 3, **BASE}, "axes": AXES}, ("cell zeroq, W8A8, seed 0", "images")),
        ({"axes": AXES}, ("cell zeroq, W8A8, seed 0", "model")),
        ({"base": BASE, "axes": {"bits": ["W9A9"]}}, ("cell W9A9", "bits")),
        ({"base": BASE, "axes": {"recipe": ["fastt"]}}, ("cell fastt", "recipe", "fast")),
        ({"base": BASE, "axes": {"seed": list(range(1001)), "images": list(range(1, 1002))}},
         ("1002001 cells",)),
        ({"base": {"model": "<Net in memory>"}, "axes": AXES}, ("in memory",)),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_one_line(values: object, parts: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_of(values, "sweep f.yaml").runs("sweep f.yaml")
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("text", ["a: [", "a: *b", "\x00", "[" * 200])
def test_a_file_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "f.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"f\.yaml"):
        load_plan(tmp_path / "f.yaml")
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        load_plan(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "axes",
    [
        {"model": ["digits_resnet8", "net.py:build"]},
        {"method": ["zeroq", "own.py:Own"]},
        {"case": {"a": {"metric": "own.py:measure"}}},
    ],
)
def test_code_of_a_file_does_not_run_unasked(tmp_path: Path, axes: dict[str, object]) -> None:
    path = tmp_path / "f.yaml"
    base = {} if "model" in axes else BASE
    path.write_text(yaml.safe_dump({"base": base, "axes": axes}), encoding="utf-8")
    cells = load_plan(path).runs("f")
    with pytest.raises(UntrustedCodeError, match=r"f\.yaml would run the code .*(net|own)\.py"):
        check_code(cells, path, trust_code=False)
    check_code(cells, path, trust_code=True)


def test_a_missing_file_is_told_by_its_reason_alone(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    with pytest.raises(ConfigError) as caught:
        load_plan(path)
    assert str(caught.value) == f"cannot read sweep {path}: No such file or directory"
