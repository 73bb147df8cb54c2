"""The verdict from whatever metrics hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from datafree.report import Source
from datafree.report.headline import Headline, duration, headline

pytestmark = pytest.mark.integration

VERDICT = {
    "loss": 1.24, "low": 0.5, "high": 2.1, "word": "good", "why": "about a point of top-1 is lost",
}  # fmt: skip
LATENCY = [
    {"threads": 2, "batch": 8, "float": 4.0, "student": 3.0},
    {"threads": 1, "batch": 1, "float": 2.0, "student": 1.0},
]


def tiles(source: Source, **metrics: Any) -> tuple[Headline, dict[str, tuple[str, str]]]:
    found = headline(replace(source, metrics=metrics))
    return found, {tile.label: (tile.value, tile.note) for tile in found.tiles}


def test_a_verdict_is_shown_as_it_is(source: Source) -> None:
    found, shown = tiles(source, verdict=VERDICT)
    assert (found.word, found.sentence) == ("good", "About a point of top-1 is lost.")
    assert shown["Estimated loss"] == ("1.2 points", "between 0.5 and 2.1 points")
    assert found.title == "digits_resnet8, W4A4"


def test_measured_accuracy_is_told_where_nobody_judged(source: Source) -> None:
    measured = {"top1": {"teacher": 99.5, "student": 97.25}, "test_images": 360}
    found, shown = tiles(source, **measured)
    assert found.word is None
    assert "97.25 %" in found.sentence
    assert "360 labelled images" in found.sentence
    assert shown["Measured loss"] == ("2.25 points", "top-1 99.50 to 97.25 %, 360 images")
    assert shown["Estimated loss"][0] == "not estimated"


def test_agreement_is_told_with_what_it_does_not_tell(source: Source) -> None:
    found, shown = tiles(source, held_out={"images": 16, "agreement": 62.5, "kl": 0.1})
    assert "does not tell how right" in found.sentence
    assert shown["Same prediction"] == ("62.5 %", "as float, on 16 synthetic images")


def test_numbers_without_classes_have_an_error(source: Source) -> None:
    _, shown = tiles(source, held_out={"images": 16, "error": 0.031, "cosine": 0.99})
    assert shown["Error"] == ("3.1 %", "of the deviation, as float, on 16 synthetic images")


def test_speed_is_of_one_image_and_one_thread_if_that_was_measured(source: Source) -> None:
    runtime = {"runtime": "onnxruntime 1.32", "latency_ms": LATENCY, "integer": 9, "total": 10}
    _, shown = tiles(source, runtime=runtime)
    told = "2.00 times as fast as float; onnxruntime 1.32, 1 thread"
    assert shown["Time for one image"] == ("1 ms", told)
    _, shown = tiles(source, runtime={**runtime, "latency_ms": LATENCY[:1]})
    assert shown["Time for one image"][0] == "0.375 ms"
    _, shown = tiles(source, runtime={**runtime, "latency_ms": []})
    told = "9 of 10 layers have integer kernels"
    assert shown["Time for one image"] == ("not measured", told)
    _, shown = tiles(source, runtime={"runtime": "x", "error": "x is not installed"})
    assert shown["Time for one image"] == ("not measured", "x is not installed")


@pytest.mark.parametrize("metrics", [{}, {"verdict": None}, {"verdict": 3, "runtime": "none"}])
def test_metrics_without_anything_still_give_a_headline(
    source: Source, metrics: dict[str, Any]
) -> None:
    found, shown = tiles(source, **metrics)
    assert found.sentence.startswith("This run measured nothing")
    assert {value for value, _ in shown.values()} >= {"not estimated", "not measured", "not known"}


def test_the_size_is_that_of_the_file(source: Source) -> None:
    _, shown = tiles(source, onnx=source.metrics["onnx"])
    share = source.metrics["onnx"]["weight_bytes"] / source.metrics["onnx"]["float_weight_bytes"]
    assert shown["Size of the weights"][1].startswith(f"{100 * share:.1f} % of float")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (60, "1 min 0 s"), (7260, "2 h 1 min")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
