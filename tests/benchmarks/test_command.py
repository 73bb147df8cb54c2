"""The command line of the house, in this process and, once, as a stranger calls it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from benchmarks.__main__ import main
from benchmarks.place import Place
from benchmarks.record import Record, append, read

from conftest import ROOT


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


House = Callable[..., Done]


@pytest.fixture
def house(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> House:
    """`python -m benchmarks` in a copy of the house."""

    def call(*arguments: str | Path) -> Done:
        words = list(map(str, arguments))
        monkeypatch.setattr(sys, "argv", ["benchmarks", *words])
        with pytest.raises(SystemExit) as stopped:
            main(words, Place(root, root / "shared"))
        said = capsys.readouterr()
        return Done(int(stopped.value.code or 0), said.out, said.err)

    return call


RECORD = Record(
    table="colours", cell={"size": "W8A8", "colour": "red", "seed": 0}, measured={"top1": 88.0},
    environment={"cpu": "Abacus", "torch": "2.13.0", "date": "2026-11-26"},
)  # fmt: skip


def test_every_command_explains_itself(house: House) -> None:
    assert "python -m benchmarks list" in house("--help").out
    for command in ("list", "run", "render"):
        assert "Usage" in house(command, "-h").out
    assert "Commands" in house().out


def test_a_list_names_tables_axes_and_values(house: House) -> None:
    assert house("list").out.split() == ["colours", "0", "of", "8:", "colours", "by", "size"]
    told = house("list", "colours").out
    assert "size: W8A8 | W4A4" in told
    assert "seed: 0 | 1" in told
    assert "views: top1" in told


def test_pages_are_made_anew_from_records(house: House, root: Path) -> None:
    append(Place(root, root).records("colours"), RECORD)
    assert "1 of   8" in house("list").out
    page = root / "docs" / "results" / "colours.md"
    assert house("render", "--check") == Done(1, "colours.md is out of date\n", "")
    assert house("render", "colours").out == "colours.md written\n"
    assert "| red | 88.0 |" in page.read_text(encoding="utf-8")
    assert house("render", "--check") == Done(0, "", "")
    page.write_text("<!-- table: colors top1 -->\n<!-- end -->\n", encoding="utf-8")
    refused = house("render")
    assert refused.code == 2
    assert refused.err == "error: colours.md: unknown table 'colors': did you mean colours?\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("list", "colors"), "unknown table 'colors': did you mean colours?"),
        (("run", "colours", "--only", "shape=W8A8"), "unknown axis of colours 'shape'"),
        (("run", "colours", "--only", "colour=rod"), "unknown value of colour of colours 'rod'"),
        (("run", "colours", "--only", "colour"), "write AXIS=VALUE"),
        (("run", "colours", "--budget", "soon"), "write seconds, minutes or hours"),
        (("run", "colours", "--seeds", "none"), "'none' is not a valid integer"),
        (("run",), "Missing argument 'TABLE...'"),
        (("measure",), "No such command 'measure'"),
    ],
)
def test_a_mistake_gives_one_line(house: House, words: tuple[str, ...], said: str) -> None:
    done = house(*words)
    assert done.code == 2
    assert said in done.err
    assert done.err.startswith("error: ")
    assert len(done.err.splitlines()) == 1


def test_missing_shared_data_is_named(house: House, root: Path) -> None:
    table = "title: t\nkind: teacher\naxes: {model: [resnet20_cifar10jpeg]}\nseeds: [0]\n"
    (root / "benchmarks" / "tables" / "other.yaml").write_text(table, encoding="utf-8")
    done = house("run", "other")
    assert done.code == 2
    assert "set DATAFREE_SHARED to the folder that has data/" in done.err


@pytest.mark.integration
def test_no_time_is_left(house: House, root: Path) -> None:
    told = house("run", "colours", "--seeds", "1", "--budget", "0.001s").out
    assert "0 measured, 4 missing" in told
    assert "missing: W8A8, red, seed 0" in told


@pytest.mark.integration
def test_a_stranger_fills_a_table_and_renders_its_page(root: Path) -> None:
    def call(*words: str) -> str:
        there = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "benchmarks", *words]
        done = subprocess.run(
            command, cwd=root, env=there, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    only = ("--only", "size=W8A8", "--only", "colour=red")
    told = call("run", "colours", *only)
    assert "colours: W8A8, red, seed 0: top1 99.72" in told
    assert told.endswith("colours: 2 measured, 0 missing\n")
    assert call("run", "colours", *only) == "colours: 0 measured, 0 missing\n"
    (first, _) = read(Place(root, root).records("colours"))
    assert first.command == "python -m benchmarks run colours --only size=W8A8 --only colour=red"
    call("render")
    page = (root / "docs" / "results" / "colours.md").read_text(encoding="utf-8")
    assert "| red | 99.7 ± 0.0 |" in page
