"""Tables of attacks, from small records by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.attacks import render
from benchmarks.place import Place

from datafree.errors import ConfigError

FAULTS = ("kill", "terminate", "interrupt", "full", "size", "read-only", "vanished", "twice")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    cells = [
        {"command": "export", "fault": fault, "tries": 3, "ended early": k}
        for k, fault in enumerate(FAULTS)
    ]
    faults = {"seconds": 120, "tries": 24, "wrong": ["torn"], "cells": cells}
    (results / "faults.json").write_text(json.dumps(faults))
    runs = [
        {
            "cell": {"reader": "config"}, "seconds": seconds,
            "measured": {
                "executions": 1500, "accepted": 2, "slowest": slowest, "findings": findings
            },
        }
        for seconds, slowest, findings in ((60, 9.0, ["slow"]), (30, 1.25, []))
    ]  # fmt: skip
    (results / "fuzz.jsonl").write_text("\n".join(map(json.dumps, runs)))
    files = [
        {"seed": 0, "bits": "W8A8", "float": 0, "difference": 0.0, "other predictions": 0},
        {"seed": 1, "bits": "W8A8", "float": 2, "difference": 0.5, "other predictions": 3},
        {"seed": 2, "bits": "W8A8", "float": 0, "refused": "why"},
    ]
    (results / "drawn_networks.jsonl").write_text("\n".join(map(json.dumps, files)))
    modules = {
        "quant/grid.py": {"noticed": 9, "survived": ["a"], "equivalent": {"b": "same"}},
        "quant/ranges.py": {"noticed": 10, "survived": [], "equivalent": {}},
    }
    (results / "mutations.json").write_text(json.dumps(modules))
    parts = {
        ".": {"branches": 8, "taken": 6, "lines": 40, "run": 39},
        "quant": {"branches": 1992, "taken": 1992, "lines": 3, "run": 2},
    }
    whole = {"branches": 2000, "taken": 1900, "lines": 500, "run": 450}
    record = {"all": whole, "parts": parts, "commit": "abc"}
    (results / "branches.json").write_text(json.dumps(record))
    return Place(tmp_path, tmp_path)


def table(name: str, place: Place) -> list[str]:
    page = f"before\n<!-- attacks: {name} -->\nold\n<!-- end -->\nafter"
    made = render(page, place)
    assert made.startswith("before\n") and made.endswith("<!-- end -->\nafter")
    return [line for line in made.splitlines()[2:-2] if line]


def test_faults_by_command_and_fault(place: Place) -> None:
    _, _, row, *below = table("faults", place)
    assert row == "| export | 3 (0) | 3 (1) | 3 (2) | 3 (3) | 3 (4) | 3 (5) | 3 (6) | 3 (7) |"
    assert " ".join(below) == (
        "24 tries in 2 minutes, 28 of which ended without a result; 1 left anything behind that"
        " should not be."
    )


def test_runs_of_a_reader_are_added_and_the_last_one_counts(place: Place) -> None:
    _, _, row, *below = table("fuzz", place)
    assert row == "| config | 3,000 | 4 | 1.5 | 1.2 | 0 |"
    assert below[0].startswith("3,000 executions in 2 minutes.")


def test_networks_by_width(place: Place) -> None:
    assert table("networks", place)[2:] == [
        "| W8A8 | 3 | 1 | 1 | 0 | 3 |",
        "3 networks, 64 images each.",
    ]


def test_mutations_by_module_and_folder(place: Place) -> None:
    assert table("mutations", place)[2:] == [
        "| `quant/grid.py` | 10 | 9 | 90.0 | 1 |",
        "| `quant/ranges.py` | 10 | 10 | 100.0 | 0 |",
        "Noticed are 95.0 % in `quant/`.",
    ]


def test_branches_by_folder_and_in_all(place: Place) -> None:
    """Of 2000 and 500 together 2350, which are 94 of a hundred."""
    _, _, *rows, one, two = table("branches", place)
    assert rows == [
        "| beside the folders | 8 | 6 | 75.0 | 97.5 |",
        "| `quant/` | 1992 | 1992 | 100.0 | 66.7 |",
    ]
    assert f"{one} {two}" == (
        "Taken are 1,900 of 2,000 branches, 95.0 %, and run 450 of 500 statements, 90.0 %:"
        " together, as coverage counts, 94.0 %. Commit abc."
    )


def test_another_name_is_refused(place: Place) -> None:
    with pytest.raises(ConfigError, match="no attack is called floods: choose from faults"):
        render("<!-- attacks: floods -->\n<!-- end -->", place)
