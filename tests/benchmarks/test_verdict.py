"""Fitting the estimate, on students whose true curve is known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from benchmarks.kinds.verdict_validation import summary
from benchmarks.verdict_fit import FLOOR, LEVEL, Row, fit, leave_one_out
from benchmarks.verdict_plot import scatter

from datafree.verdict.features import Features
from datafree.verdict.model import inputs, share_of


def student(random: np.random.Generator, network: str, offset: float, spread: float) -> Row:
    """A student whose odds are half those of flips, and half of the divergence, with errors."""
    damage = random.uniform(-5, 3)
    share = share_of(damage, FLOOR)
    found = Features(
        images=256, classes=10, kl=math.exp(damage), flips=share, expected_loss=share / 2,
        margin_loss=share / 3, doubt=share / 2, near_flips=share / 2, sqnr_db=15 - 5 * damage,
        commonest=0.1, commonest_teacher=0.1,
    )  # fmt: skip
    told = inputs(found, FLOOR)
    odds = 0.5 * told["flips"] + 0.5 * told["kl"] - 1 + offset + spread * random.standard_normal()
    loss = 80 * share_of(odds, FLOOR)
    return Row(network, f"{damage:.2f}", loss, 90.0, found, f"{network} {loss}")


def students(networks: int, each: int, offsets: float, spread: float) -> list[Row]:
    random = np.random.default_rng(0)
    found: list[Row] = []
    for place in range(networks):
        offset = offsets * random.standard_normal()
        found += [student(random, f"n{place}", offset, spread) for _ in range(each)]
    return found


def test_a_curve_that_is_there_is_found() -> None:
    rows = students(6, 40, 0.0, 0.0)
    model = fit(rows, ("flips", "kl"))
    assert model.networks == 6 and model.cells == 240 and model.top1 == pytest.approx(90)
    errors = [abs(model.loss(row.features)[0] - row.loss) for row in rows]
    assert float(np.mean(errors)) < 1.0
    assert min(model.weights.values()) >= 0


def test_weights_that_would_be_negative_are_nothing() -> None:
    """Signal over noise counts downwards; as a feature that falls it cannot help."""
    rows = students(4, 30, 0.0, 0.1)
    turned = [
        Row(r.network, r.name, r.loss, r.teacher,
            r.features.model_copy(update={"doubt": 1 - r.features.flips}), r.line)
        for r in rows
    ]  # fmt: skip
    assert fit(turned, ("flips", "doubt")).weights["doubt"] == 0


def test_a_network_that_is_left_out_is_not_seen() -> None:
    """What is told of one network does not change with its own true losses."""
    rows = students(5, 12, 0.3, 0.2)
    moved = [
        Row(r.network, r.name, 50.0, r.teacher, r.features, r.line) if r.network == "n2" else r
        for r in rows
    ]
    before = [one.verdict for one in leave_one_out(rows) if one.row.network == "n2"]
    after = [one.verdict for one in leave_one_out(moved) if one.row.network == "n2"]
    assert before == after and len(before) == 12


def test_intervals_cover_networks_like_those_they_were_made_of() -> None:
    told = leave_one_out(students(12, 25, 0.2, 0.5))
    covered = sum(one.covered for one in told) / len(told)
    assert LEVEL - 0.06 < covered < LEVEL + 0.06


def test_networks_that_leak_flatter() -> None:
    """Where networks differ, leaving students out instead of networks gives smaller errors."""
    rows = students(6, 20, 1.0, 0.1)
    random = np.random.default_rng(1)
    folds = random.permutation([row.network for row in rows])
    leaking = [
        Row(str(fold), r.name, r.loss, r.teacher, r.features, r.line)
        for fold, r in zip(folds, rows, strict=True)
    ]
    errors = [
        float(np.mean([abs(one.verdict.loss - one.row.loss) for one in leave_one_out(found)]))
        for found in (rows, leaking)
    ]
    assert errors[1] < errors[0]


def test_what_is_summed_up(tmp_path: Path) -> None:
    told = leave_one_out(students(6, 20, 0.1, 0.1))
    found = summary(told)
    assert found["cells"] == 120 == found["good"] + found["check"] + found["poor"]
    assert found["rank"] > 0.95 and found["small_error"] < 1.5
    assert 120 - len(found["missed"]) == pytest.approx(1.2 * found["covered"])
    scatter(told, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"
