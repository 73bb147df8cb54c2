"""Records: written so that a crash costs one line, and all that were there before are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks.place import Place
from benchmarks.record import Record, append, commit, environment, read
from hypothesis import given
from hypothesis import strategies as st

from conftest import ROOT

RESULTS = Place.here().house / "results"
BEFORE = {
    "calibration_resnet20": 192, "calibration_mobilenet": 96, "teachers": 2,
    "corrections_resnet20": 72, "corrections_mobilenet": 12, "depthwise": 47,
    "distill_digits": 28, "distill_lenet5": 9, "distill_resnet20": 7, "dsg_margins": 24,
    "dsg_tables": 48, "image_facts": 7, "finetuning_digits": 198, "finetuning_resnet20": 61,
    "lenet5": 1, "mixed_precision": 26, "reconstruction": 191, "sadag_ablation": 28, "trained": 12,
    # tables that stood in pages only
    "onnx_parity": 8, "input_ranges": 4, "where_lost": 15,
    # numbers of the old README
    "rates": 10, "biases_after_rounding": 6, "command": 1, "default_biases": 7,
}  # fmt: skip
"""Records from before the house, by table: 1,061 lines, 27 rows of pages, 24 numbers."""


def a_record(number: float, text: str = "") -> Record:
    return Record(
        table="small", cell={"bits": text, "seed": 0}, measured={"top1": number},
        environment={"date": "2026-11-25"},
    )  # fmt: skip


@given(st.lists(st.tuples(st.floats(0, 100), st.text()), min_size=1, max_size=5), st.data())
def test_a_crash_costs_the_line_it_cut_off(
    tmp_path_factory: pytest.TempPathFactory, given_: list[tuple[float, str]], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("records") / "small.jsonl"
    records = [a_record(number, text) for number, text in given_]
    for record in records:
        append(path, record)
    assert read(path) == tuple(records)
    whole = path.read_bytes()
    last = len(records[-1].line().encode())
    path.write_bytes(whole[: len(whole) - data.draw(st.integers(2, last))])
    assert read(path) == tuple(records[:-1])
    append(path, records[-1])
    assert read(path) == tuple(records)


def test_a_line_without_its_end_counts(tmp_path: Path) -> None:
    path = tmp_path / "small.jsonl"
    path.write_text(a_record(1.0).line().rstrip("\n"), encoding="utf-8")
    append(path, a_record(2.0))
    assert [record.measured["top1"] for record in read(path)] == [1.0, 2.0]


def test_no_file_has_no_records(tmp_path: Path) -> None:
    assert read(tmp_path / "none.jsonl") == ()


def test_names_within_names() -> None:
    record = a_record(1.0).model_copy(update={"measured": {"stages": {"export": 6.2}}})
    assert record.value("stages.export") == 6.2
    assert record.value("stages.capture") is None
    assert record.value("top1.student") is None


def test_environment_and_commit() -> None:
    told = environment()
    assert {"cpu", "cores", "threads", "torch", "python", "date"} <= set(told)
    assert len(commit(ROOT).rstrip("+")) in (0, 7)
    assert commit(Path("/")) == ""


@pytest.mark.parametrize(("table", "count"), BEFORE.items())
def test_no_old_record_is_lost(table: str, count: int) -> None:
    path = RESULTS / f"{table}.jsonl"
    assert len(read(path)) == path.read_text(encoding="utf-8").count("\n")
    new = [r for r in read(path) if r.command.startswith(("python -m benchmarks", "adopted"))]
    assert len(read(path)) - len(new) == count


def found(table: str, **cell: Any) -> Record:
    """The only record with these values."""
    (record,) = (r for r in read(RESULTS / f"{table}.jsonl") if cell.items() <= r.cell.items())
    return record


def test_some_old_cells_have_their_values() -> None:
    cell = {"images": "dsg", "calibrator": "mse", "bits": "W3A3", "seed": 1}
    old = found("calibration_resnet20", **cell)
    assert old.measured == {"top1": 71.65, "digest": "3c5a66dc851e8db5"}
    assert old.settings["iterations"] == 500
    cell = {"images": "genie", "rounding": "genie_m", "bits": "W2A2", "schedule": "500 steps"}
    assert found("reconstruction", **cell, seed=2).measured["top1"] == 79.07
    cell = {"row": "gdfq", "schedule": "rate 0.001, generator 0.01", "bits": "W2A2", "seed": 0}
    assert {"kl", "shifted", "noisy", "last", "agreement"} <= set(
        found("finetuning_digits", **cell).measured
    )
    cell = {"weights": "average 4, A8", "rounding": "nearest", "policy": "all"}
    assert found("mixed_precision", **cell).measured["layer_bits"] == "85665666554554343538"
    assert found("lenet5", seed=0).measured["top1"] == 99.33
    ranges = found("input_ranges", images="zeroq").measured["ranges"]
    assert ranges["mean_quantizer"] == 0.98
    assert found("where_lost", scheme="W4A4, analytic").measured["top1"] == 45.67
    cell = {"training": "dfqf, 1200 steps, rate 0.003", "bits": "W2A2"}
    trained = found("trained", **cell)
    assert trained.measured["top1"] == 80.4
    assert trained.measured["student_digest"].startswith("861e3fa3")
    cell = {"granularity": "sample", "epsilon": "0.9", "seed": 0}
    assert found("dsg_margins", **cell).measured["top1_w3a3"] == 54.35
