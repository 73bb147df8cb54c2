"""What stands in the tables."""

from __future__ import annotations

import pytest

from datafree.cli import console
from datafree.config import RunConfig

CONFIG = RunConfig(
    model="nets/[/old]/net.pt2",
    target="paper",
    bits="W4A32",
    policy="first_last_8",
    method="dsg",
    method_options={"iterations": 3},
    calibrator="ema",
    seed=7,
)


def test_the_table_states_what_was_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_result(CONFIG, {}, {"capture": 1.25}, images=32)
    shown = capsys.readouterr().out
    for part in ("nets/[/old]/net.pt2", "4 bits, affine", "float", "first_last_8", "ema", "7"):
        assert part in shown
    assert "dsg (iterations=3)" in shown
    assert "capture 1.2 s" in shown


def test_everything_measured_has_a_row() -> None:
    metrics = {
        "top1": {"teacher": 99.0, "student": 98.125},
        "test_images": 360,
        "held_out": {"agreement": 50.0, "kl": 0.5, "images": 2},
        "sqnr_db": {"a": 40.0, "b": 12.34},
        "onnx": {"line": "89 kB", "notes": ["set X"]},
    }
    assert console.measured_rows(metrics) == [
        ("top-1 on 360 images", "teacher 99.00 %, student 98.12 %"),
        (
            "teacher and student on 2 held-out images",
            "50.0 % same prediction, KL 0.5000",
        ),
        ("noisiest layer", "b, 12.3 dB"),
        ("onnx", "89 kB"),
        ("", "set X"),
    ]
    assert console.measured_rows({}) == []


@pytest.mark.parametrize(
    ("undecided", "text"),
    [((10, 5), "15.0 %"), ((30, 20), "50.0 %; more iterations would settle them")],
)
def test_roundings_left_undecided_are_told(undecided: tuple[int, int], text: str) -> None:
    counts = zip((75, 25), undecided, strict=True)
    units = [{"block": "b", "rounded": rounded, "undecided": left} for rounded, left in counts]
    units.append({"block": "steps alone", "rounded": 0, "undecided": 0})
    rows = console.measured_rows({"reconstruction": units})
    assert rows == [("roundings left undecided", text)]
    assert console.measured_rows({"reconstruction": units[-1:]}) == []


def test_cells_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_table("title [/x]", ("a", "b"), [("[bold]", "[/y]")])
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("title [/x]", "[bold]", "[/y]"))


def test_progress_counts_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("images", 3) as step:
        step(1)
        step(2)
    assert capsys.readouterr().out == ""
