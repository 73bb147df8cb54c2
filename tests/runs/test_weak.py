from __future__ import annotations

import math
from typing import Any

import pytest

from datafree.runs.weak import lossy, weak_points

NOISE = {"a": 30.0, "b": 4.9, "c": -3.0, "d": math.inf, "e": 5.0}


def test_layers_under_5_db_are_named_the_worst_first() -> None:
    (told,) = weak_points({"sqnr_db": NOISE})
    assert told.startswith("2 of 5 layers have less than 5 dB")
    assert "c (-3.0 dB), b (4.9 dB);" in told
    assert "--layer-bits c=8" in told


def test_of_many_three_are_named() -> None:
    (told,) = weak_points({"sqnr_db": {f"l{i}": float(i) for i in range(5)}})
    assert "l2 (2.0 dB) and 2 more" in told
    assert "l3" not in told


@pytest.mark.parametrize("metrics", [{}, {"sqnr_db": {}}, {"sqnr_db": {"a": 5.0, "b": math.inf}}])
def test_nothing_is_told_where_all_is_well(metrics: dict[str, Any]) -> None:
    assert weak_points(metrics) == []


def test_records_of_all_ages_are_read() -> None:
    assert lossy({"sqnr_db": {"a": None, "b": "Infinity", "c": math.inf, "d": 1}}) == {"d": 1.0}


@pytest.mark.parametrize(("agreement", "told"), [(10.0, 1), (15.9, 1), (16.1, 0), (90.0, 0)])
def test_agreement_as_of_answers_drawn_at_random(agreement: float, told: int) -> None:
    """Two standard errors of 10 % on 100 images are 6 points."""
    held = {"agreement": agreement, "chance": 10.0, "images": 100}
    found = weak_points({"held_out": held})
    assert len(found) == told
    assert all("at chance" in line and f"{agreement:.1f} %" in line for line in found)


@pytest.mark.parametrize(
    ("teacher", "student", "told"), [(97.0, 11.0, 1), (97.0, 60.0, 0), (10.0, 10.0, 0)]
)
def test_right_answers_as_of_a_draw(teacher: float, student: float, told: int) -> None:
    metrics = {"top1": {"teacher": teacher, "student": student}, "test_images": 1000}
    assert len(weak_points(metrics, 10)) == told
    assert weak_points(metrics, None) == []
    assert weak_points(metrics, 1) == []
