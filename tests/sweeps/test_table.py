"""The table: means over seeds by hand, 80 columns, cells that are not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datafree.runs.stored import Stored
from datafree.sweeps.plan import Cell, plan_of
from datafree.sweeps.table import WIDTH, Row, in_words

AXES = {"method": ["zeroq", "dsg"], "bits": ["W8A8", "W4A4"], "seed": [0, 1, 2]}


def cells_of(axes: dict[str, Any]) -> tuple[Cell, ...]:
    base = {"images": 4} | ({} if "model" in axes else {"model": "digits_resnet8"})
    return plan_of({"base": base, "axes": axes}, "x").runs("x")


def row(cell: Cell, student: float, seconds: float = 2.0, teacher: str = "abc") -> Row:
    results = {"teacher": teacher, "top1": {"teacher": 99.0, "student": student}}
    record = {"results": results, "hashes": {}, "seconds": {"all": seconds}}
    return Row(cell, "finished", Stored(Path("x"), cell.config, record))


def test_a_row_is_the_mean_over_seeds_with_its_deviation() -> None:
    cells = cells_of(AXES)
    rows = [row(cell, 90.0 + k % 3, seconds=k % 3) for k, cell in enumerate(cells)]
    lines = in_words(rows).splitlines()
    assert lines[0] == "12 of 12 cells are finished; model digits_resnet8"
    assert lines[1].split() == [
        "method", "bits", "seeds", "top-1", "float", "top-1", "student", "seconds",
    ]  # fmt: skip
    # 90, 91, 92: mean 91, deviation of the sample 1; 0, 1, 2 seconds likewise.
    expected = ["zeroq", "W8A8", "3", "99.0", "±0.0", "91.0", "±1.0", "1.0", "±1.0"]
    assert lines[2].split() == expected
    assert len(lines) == 6


def test_cells_that_failed_or_are_missing_are_named_and_do_not_count() -> None:
    zero, one, two, *rest = cells_of(AXES)
    rows = [row(zero, 90.0), Row(one, "failed", error="no [room]"), Row(two, "missing")]
    text = in_words([*rows, *(Row(cell, "missing") for cell in rest)])
    assert text.startswith("1 of 12 cells are finished; model digits_resnet8\n")
    assert "failed: zeroq, W8A8, seed 1: no [room]\nmissing: zeroq, W8A8, seed 2\n" in text
    assert "zeroq" in text.splitlines()[2] and " 1 " in text.splitlines()[2]


def test_lines_fit_a_terminal_of_80_columns() -> None:
    models = [f"networks/of/some/length/model_{k}_with_a_long_name.pt2" for k in range(2)]
    axes = {"model": models, "calibrator": ["percentile", "mse"], **AXES}
    rows = [row(cell, 90.0) for cell in cells_of(axes)]
    told = in_words([*rows, Row(rows[0].cell, "failed", error="why " * 50)])
    assert max(map(len, told.splitlines())) <= WIDTH
    assert "…" not in told


def test_numbers_that_must_not_be_compared_are_told() -> None:
    one, two = cells_of({"seed": [0, 1]})
    assert "has changed" in in_words([row(one, 90.0), row(two, 90.0, teacher="other")])
    assert "has changed" not in in_words([row(one, 90.0), row(two, 90.0)])
    policies = cells_of({"policy": ["all", "brecq"]})
    assert "policies differ (all, brecq)" in in_words([row(cell, 90.0) for cell in policies])
