"""What is foretold: how it scales, and how it is said."""

from __future__ import annotations

from typing import Any

import pytest

from datafree.config import Frozen
from datafree.reconstruction.adaround import AdaRound
from datafree.reconstruction.base import Reconstructor
from datafree.reconstruction.brecq import BRECQ
from datafree.registry import available, load
from datafree.runs import forecast
from datafree.runs.forecast import expected_seconds, in_words, seconds_per_image
from datafree.synthesis.base import Synthesizer
from datafree.synthesis.dsg import DSG
from datafree.synthesis.noise import Noise
from networks import SPEC, captured


@pytest.fixture
def second_per_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def one(*_: object) -> float:
        return 1.0

    monkeypatch.setattr(forecast, "seconds_per_image", one)


@pytest.mark.usefixtures("second_per_image")
def test_seconds_of_images_and_rounding() -> None:
    """10 images x 7 steps; 3 steps of 4 images, quantized."""
    found = expected_seconds(
        captured("Tiny"), SPEC, DSG(iterations=7), AdaRound(iterations=3, batch_size=4), 10
    )
    assert found == {"synthesis": 70, "reconstruction": 24}


@pytest.mark.usefixtures("second_per_image")
def test_images_to_compare_on_are_made_too() -> None:
    """48 of 100 take 12 steps; 150 mixtures and 2 x 100 images pass forward alone."""
    found = expected_seconds(captured("Tiny"), SPEC, DSG(iterations=7), None, 10, held_out=100)
    assert found == {"synthesis": 70, "evaluation": pytest.approx(48 * 12 + 350 / 3)}
    assert expected_seconds(captured("Tiny"), SPEC, None, None, 0, held_out=2)["evaluation"] > 0


@pytest.mark.usefixtures("second_per_image")
def test_what_costs_nothing() -> None:
    assert expected_seconds(captured("Tiny"), SPEC, None, None, 10) == {}
    assert expected_seconds(captured("Tiny"), SPEC, Noise(), None, 10) == {"synthesis": 0}


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
        few: Any = cls.model_validate({"iterations": 100})
        many: Any = cls.model_validate({"iterations": 10_000})
        assert many.passes(64) > 2 * few.passes(64) > 0, name


def test_a_pass_takes_some_time() -> None:
    assert seconds_per_image(captured("Tiny"), SPEC) > 0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "under a second"), (40.4, "40 s"), (89, "89 s"), (150, "2 min"), (9000, "2.5 h")],
)
def test_times_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
