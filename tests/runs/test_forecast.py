"""What is foretold: how it grows with the work, and how it is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datafree.config import Frozen, RunConfig
from datafree.reconstruction.base import Reconstructor
from datafree.reconstruction.brecq import BRECQ
from datafree.registry import available, load
from datafree.runs.forecast import Forecast, foretell, roughly
from datafree.runs.opening import open_run
from datafree.synthesis.base import Synthesizer
from datafree.zoo import load_digits_test

BASE: dict[str, Any] = {
    "model": "digits_resnet8", "bits": "W4A4", "method": "zeroq", "images": 8, "holdout": 0,
    "method_options": {"iterations": 100}, "device": "cpu",
}  # fmt: skip


def foretold(*, written: bool = False, **changes: Any) -> Forecast:
    begun = open_run(RunConfig(**{**BASE, **changes}))
    return foretell(begun, 1.0, written=written)


def test_ten_times_the_steps_take_about_ten_times_as_long() -> None:
    few = foretold(protocol="paper").seconds["synthesis"]
    many = foretold(protocol="paper", method_options={"iterations": 1000}).seconds["synthesis"]
    assert few > 0
    assert 3 * few < many < 33 * few  # a busy machine is no clock


def test_steps_that_end_by_themselves_are_not_all_expected() -> None:
    some = foretold(method_options={"iterations": 300}).seconds["synthesis"]
    most = foretold(method_options={"iterations": 100_000}).seconds["synthesis"]
    assert some / 4 < most < 4 * some


def test_learned_rounding_counts_its_steps() -> None:
    learned: dict[str, Any] = {
        "reconstruction": "adaround",
        "method": "noise",
        "method_options": {},
    }
    few = foretold(**learned, reconstruction_options={"iterations": 200})
    many = foretold(**learned, reconstruction_options={"iterations": 4000})
    assert many.seconds["reconstruction"] > 4 * few.seconds["reconstruction"] > 0


def test_a_training_has_its_time_limit() -> None:
    chosen: dict[str, Any] = {"training": "dfqf", "method": "noise", "method_options": {}}
    chosen["training_options"] = {"batch_size": 16, "width": 8, "holdout": 16}
    found = foretold(**chosen, max_time=30)
    assert 20 < found.seconds["training"] < 30
    assert found.total == pytest.approx(30)
    assert foretold(**chosen).seconds["training"] > 60  # 24,000 steps


@pytest.mark.parametrize("written", [False, True])
def test_a_rough_forecast_knows_the_same_stages(*, written: bool) -> None:
    """In their order, the ones that learn cut to the limit; of both kinds of runs."""
    chosen: tuple[dict[str, Any], ...] = (
        {"reconstruction": "adaround", "holdout": 8},
        {"training": "dfqf", "reconstruction": "qdrop", "method": "noise", "method_options": {}},
        {
            "training": "fixed_set",
            "training_options": {"weights": "lsq"},
            "holdout": 8,
            "reconstruction": "adaround",
        },
        {"calibrator": "bn_statistics", "method": "noise", "method_options": {}},
        {"average_bits": 4.0},
    )
    for changes in chosen:
        fields: dict[str, Any] = {**BASE, **changes, "max_time": 40}
        begun = open_run(RunConfig(**fields))
        rough, exact = (f(begun, 1.0, written=written) for f in (roughly, foretell))
        wanted = [stage for stage in exact.seconds if stage != "bias correction"]
        assert list(rough.seconds) == wanted
        assert rough.total <= 40.01


def test_evaluation_counts_the_labelled_images(tmp_path: Path) -> None:
    pixels, labels = load_digits_test()
    np.savez(tmp_path / "digits.npz", images=pixels, labels=labels)
    still: dict[str, Any] = {"method": "noise", "method_options": {}, "images": 2}
    few = foretold(**still, data=tmp_path / "digits.npz", limit=4).seconds["evaluation"]
    many = foretold(**still, data=tmp_path / "digits.npz").seconds["evaluation"]
    assert many > 10 * few > 0


def test_held_out_images_are_a_stage_where_nothing_is_labelled(tmp_path: Path) -> None:
    pixels, labels = load_digits_test()
    np.savez(tmp_path / "digits.npz", images=pixels, labels=labels)
    still: dict[str, Any] = {"method": "noise", "method_options": {}, "images": 2, "holdout": 64}
    assert foretold(**still).seconds["holdout"] > 0
    assert "holdout" not in foretold(**still, data=tmp_path / "digits.npz", limit=4).seconds
    none: dict[str, Any] = {**still, "holdout": 0}
    assert "holdout" not in foretold(**none).seconds


def test_files_count_where_they_are_written() -> None:
    still: dict[str, Any] = {"method": "noise", "method_options": {}}
    plain, written = foretold(**still), foretold(**still, written=True)
    assert "export" not in plain.seconds
    assert written.seconds["export"] > 2
    assert written.seconds["runtime"] > 1
    assert foretold(**still, written=True, export=False).seconds.get("runtime") is None
    assert 1e8 < plain.memory < written.memory


def test_both_stages_of_brecq_count() -> None:
    method = BRECQ(iterations=10, activation_iterations=5, batch_size=2)
    assert method.passes(100) == 2 * 15 * 2


@pytest.mark.parametrize("package", ["synthesis", "reconstruction"])
def test_more_steps_take_longer(package: str) -> None:
    base: Any = {"synthesis": Synthesizer, "reconstruction": Reconstructor}[package]
    for name in available(f"datafree.{package}"):
        cls: type[Frozen] = load(f"datafree.{package}", name, base)
        if "iterations" not in cls.model_fields:
            continue
        paper = getattr(cls, "paper_options", {})
        few: Any = cls.model_validate({**paper, "iterations": 100})
        many: Any = cls.model_validate({**paper, "iterations": 10_000})
        assert many.passes(64) > 2 * few.passes(64) > 0, name


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        ({"capture": 1.0, "synthesis": 2.0}, "expected to take a few seconds here"),
        (
            {"capture": 2.0, "synthesis": 240.0, "evaluation": 0.1},
            "expected to take about 4 min here (capture 2 s, synthesis 4 min)",
        ),
    ],
)
def test_it_is_a_sentence(seconds: dict[str, float], told: str) -> None:
    assert str(Forecast(seconds, 0.0)) == told
