"""Sweeps from file to table: resumed, damaged, failing, by every door."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

import datafree
from commands import Command, refused
from datafree.errors import SweepError, UntrustedCodeError
from datafree.runs.searching import carry_out
from datafree.sweeps import computing
from datafree.sweeps.folder import Folder, digest
from datafree.sweeps.options import SweepOptions
from datafree.sweeps.plan import load_plan
from datafree.sweeps.sweeping import sweep

pytestmark = pytest.mark.integration

PLAN: dict[str, Any] = {
    "base": {
        "model": "digits_resnet8", "images": 4, "holdout": 4, "isolate": False, "latency": False,
        "report": False, "export": False, "calibrator": "minmax", "method": "noise",
    },
    "axes": {"bits": ["W8A8", "W4A4"], "seed": [0, 1]},
}  # fmt: skip


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a sweep of four cells, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return written(tmp_path / "small.yaml", PLAN)


def written(path: Path, values: Mapping[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(dict(values)), encoding="utf-8")
    return path


def starts(folder: Path) -> dict[str, int]:
    return {
        path.stem: path.read_text(encoding="utf-8").count('"started"')
        for path in (folder / "log").glob("*.jsonl")
    }


def by_axes(lines: list[dict[str, Any]]) -> list[str]:
    return ["-".join(line["cell"].values()) for line in lines]


def test_a_cell_is_the_run_that_quantize_makes(plan: Path, tmp_path: Path) -> None:
    swept = datafree.sweep(str(plan), output="out", workers=1)
    assert (swept.computed, [row.status for row in swept.rows]) == (4, ["finished"] * 4)
    cell = load_plan(plan).runs("x")[1]
    carry_out(cell.config, folder=tmp_path / "alone")
    alone = json.loads((tmp_path / "alone/metrics.json").read_text(encoding="utf-8"))
    line = swept.lines()[1]
    assert line["digest"] == digest(alone)
    assert line["results"]["held_out"] == alone["results"]["held_out"]
    assert line["digest"] != swept.lines()[0]["digest"]
    shared = json.loads((Path("out") / line["folder"] / "metrics.json").read_text(encoding="utf-8"))
    assert shared["hashes"] == alone["hashes"]
    lines = (tmp_path / "out/table.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(one) for one in lines] == swept.lines()
    assert swept.text == (tmp_path / "out/table.txt").read_text(encoding="utf-8")


def test_what_is_finished_is_not_computed_again_and_values_can_be_added(plan: Path) -> None:
    few = {**PLAN, "axes": {**PLAN["axes"], "seed": [0]}}
    assert datafree.sweep(few, output="out", workers=1).computed == 2
    before = {p: p.stat().st_mtime_ns for p in Path("out/cells").glob("*/*")}
    assert datafree.sweep(plan, output="out", workers=1).computed == 2
    assert datafree.sweep(plan, output="out", workers=1).computed == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert set(starts(Path("out")).values()) == {1}


def test_a_cell_that_fails_stops_no_other(
    plan: Path, datafree_command: Command, tmp_path: Path
) -> None:
    axes = {"model": ["digits_resnet8", "gone.pt2"], "seed": [0, 1]}
    base = {k: v for k, v in PLAN["base"].items() if k != "model"}
    written(plan, {"base": base, "axes": axes})
    done = datafree_command("sweep", "small.yaml", "--workers", "1", "--output", "out")
    assert done.code == 4
    assert "2 of 4 cells are finished" in done.out and "failed: gone.pt2, seed 1" in done.out
    assert "failed: 2 of 4 cells failed or are missing" in done.err
    assert "Traceback" not in done.err
    found = [json.loads(line) for line in Path("out/table.jsonl").read_text().splitlines()]
    assert [one["status"] for one in found] == ["finished", "finished", "failed", "failed"]
    assert "gone.pt2" in found[2]["error"]
    again = datafree_command("sweep", "small.yaml", "--workers", "1", "--output", "out")
    assert again.code == 4  # tried again, and the others are left alone
    counts = starts(tmp_path / "out")
    assert [counts[f"digits_resnet8-{k}"] for k in (0, 1)] == [1, 1]
    assert sorted(counts.values()) == [1, 1, 2, 2]


def test_a_fault_of_the_program_stops_no_other(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(config: Any, **given: Any) -> Any:
        if config.seed == 1:
            raise ZeroDivisionError("by nobody")
        return carry_out(config, **given)

    monkeypatch.setattr(computing, "carry_out", faulty)
    with pytest.raises(
        SweepError, match=r"2 of 4 cells .*W8A8, seed 1: ZeroDivisionError"
    ) as caught:
        datafree.sweep(plan, output="out", workers=1)
    assert not caught.value.verdicts
    assert [row.status for row in caught.value.swept.rows] == ["finished", "failed"] * 2
    assert "Traceback" in Path("out/log/W8A8-1.jsonl").read_text(encoding="utf-8")


def test_a_damaged_file_is_told_and_not_replaced(plan: Path) -> None:
    datafree.sweep(plan, output="out", workers=1)
    damaged = Path("out/cells/W4A4-1/student.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(SweepError, match=r"1 of 4 cells .*W4A4, seed 1: .*student\.safetensors"):
        datafree.sweep(plan, output="out", workers=1)
    assert set(starts(Path("out")).values()) == {1}


def test_other_settings_are_refused_before_anything_is_computed(
    plan: Path, datafree_command: Command
) -> None:
    datafree.sweep(plan, output="out", workers=1)
    written(plan, {**PLAN, "base": {**PLAN["base"], "images": 5}})
    done = datafree_command("sweep", "small.yaml", "--output", "out")
    refused(done, "W8A8, seed 0", "images is 4 there and 5 here", "--output")
    assert set(starts(Path("out")).values()) == {1}


@pytest.mark.parametrize(
    ("changes", "words", "parts"),
    [
        ({"axes": {"bits": ["W9A9"]}}, (), ("small.yaml", "cell W9A9", "bits")),
        (
            {"axes": {"method": ["noise", "zeroqq"]}},
            (),
            ("small.yaml, cell zeroqq", "unknown image method", "zeroq?"),
        ),
        (
            {"axes": {"x": {"some": {"method": "dsg", "method_options": {"iteration": 3}}}}},
            (),
            ("small.yaml, cell some", "iteration is not known"),
        ),
        ({}, ("--shard", "4/4"), ("shard", "0/4 to 3/4")),
        ({}, ("--address", "auto"), ("engine ray",)),
        ({}, ("--output", "taken"), ("taken exists and is no sweep",)),
        ({"axes": {"model": ["net.py:build"]}}, (), ("small.yaml would run", "net.py:build")),
    ],
)
def test_mistakes_are_one_line(
    plan: Path, datafree_command: Command, changes: dict[str, Any], words: Any, parts: Any
) -> None:
    written(plan, {**PLAN, **changes})
    Path("taken").mkdir()
    Path("taken/thesis.tex").touch()
    refused(datafree_command("sweep", "small.yaml", *words), *parts)
    assert not Path("small").exists()
    assert [path.name for path in Path("taken").iterdir()] == ["thesis.tex"]


@pytest.mark.usefixtures("material")
def test_code_runs_when_somebody_says_so(plan: Path) -> None:
    base = {**PLAN["base"], "input_shape": [3, 8, 8], "mean": [0, 0, 0], "std": [1, 1, 1]}
    written(plan, {"base": {**base, "model": "net.py:net"}, "axes": {"seed": [0]}})
    with pytest.raises(UntrustedCodeError):
        sweep(plan, SweepOptions(workers=1), Path("out"))
    assert not Path("out").exists()
    assert sweep(plan, SweepOptions(workers=1), Path("out"), trust_code=True).computed == 1


def test_parts_in_one_folder_and_in_several_are_the_whole(
    plan: Path, datafree_command: Command
) -> None:
    whole = datafree.sweep(plan, output="one", workers=1).lines()
    with pytest.raises(SweepError):
        datafree_part = datafree.sweep(plan, output="shared", workers=1, shard="0/2")
        assert datafree_part.computed == 2  # its own are finished: no error
        datafree_merge("shared")
    assert datafree.sweep(plan, output="shared", workers=1, shard="1/2").lines() != []
    for k in (0, 1):
        datafree.sweep(plan, output=f"part-{k}", workers=1, shard=(k, 2))
    assert datafree_command("merge", "shared").code == 0
    assert datafree_command("merge", "part-0", "part-1", "--output", "merged").code == 0
    for folder in ("shared", "merged"):
        lines = [json.loads(line) for line in Path(folder, "table.jsonl").read_text().splitlines()]
        assert [line["digest"] for line in lines] == [line["digest"] for line in whole]
        assert set(starts(Path(folder)).values()) == {1}


def datafree_merge(folder: str) -> None:
    from datafree.sweeps.merging import merge_sweeps

    merge_sweeps([Path(folder)])


def test_a_verdict_below_is_another_exit_code(plan: Path, datafree_command: Command) -> None:
    written(plan, {**PLAN, "base": {**PLAN["base"], "fail_below": "check"}})
    done = datafree_command("sweep", "small.yaml", "--workers", "1")
    assert done.code == 3
    assert "4 of 4 cells are finished" in done.out and "fail_below" in done.err
    again = datafree_command("sweep", "small.yaml", "--workers", "1")
    assert (again.code, set(starts(Path("small")).values())) == (3, {1})


def test_the_log_outlives_a_line_that_was_cut_off(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.logs.mkdir()
    log = folder.log("a")
    log.add("started", call="x")
    with log.path.open("a") as file:
        file.write('{"event": "fin')
    log.add("failed", call="x", error="why")
    assert [one["event"] for one in log.events()] == ["started", "failed"]
    assert (log.begun("x"), log.begun("y"), log.error()) == (1, 0, "why")
    log.add("started", call="x")
    assert log.error() == ""
