"""The cheapest scheme within a bound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import datafree
from datafree.config import load_config
from datafree.config.parsing import points
from datafree.errors import ConfigError, VerdictError
from datafree.runs import measuring
from datafree.runs.searching import by_blame
from datafree.verdict.estimate import Verdict
from datafree.zoo import load_digits_test

QUICK: dict[str, Any] = {
    "method": "noise", "images": 16, "device": "cpu", "export": False, "latency": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    images, labels = load_digits_test()
    np.savez(path, images=images, labels=labels)
    return path


def test_layers_that_lose_most_come_first() -> None:
    shares = {
        "a": {"alone": 0.1, "without": 0.9},
        "b": {"alone": 0.5, "without": 0.6},
        "c": {"alone": 0.2, "without": 0.8},
    }
    assert by_blame({"by_layer": shares}) == ["b", "c", "a"]
    assert by_blame({}) == []


@pytest.mark.parametrize(("text", "found"), [("1%", 1.0), ("0.5", 0.5), (2, 2.0), (None, None)])
def test_points_are_read(text: Any, found: float | None) -> None:
    assert points(text) == found


@pytest.mark.parametrize("text", ["one", "0", "-1%", "101", "nan"])
def test_other_bounds_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not understood|no loss"):
        points(text)


@pytest.mark.integration
def test_few_bits_that_are_good_enough_are_taken(digits: Path, tmp_path: Path) -> None:
    found = datafree.quantize(
        "digits_resnet8", max_drop="3%", data=digits, output=tmp_path / "run", **QUICK
    )
    assert found.config.scheme.label == "W4A8" and found.config.rounding is None
    told = found.metrics["search"]
    assert told["taken"] == "W4A8" and [one["within"] for one in told["tries"]] == [True]
    assert json.loads((tmp_path / "run" / "search.json").read_text()) == json.loads(
        json.dumps(told)
    )
    repeated = load_config(tmp_path / "run" / "config.yaml")
    assert repeated.max_drop is None and repeated.scheme == found.config.scheme


@pytest.mark.integration
def test_weak_layers_get_eight_bits_where_learned_rounding_does_not_do(digits: Path) -> None:
    found = datafree.quantize(
        "digits_resnet8", bits="W2A2", max_drop=2, data=digits, reconstruction="adaround",
        reconstruction_options={"iterations": 2}, weight_granularity="tensor", **QUICK,
    )  # fmt: skip
    lines = [one["what"] for one in found.metrics["search"]["tries"]]
    assert lines[:2] == ["W2A2", "W8A8"]
    assert all("layers at 8 bits" in line for line in lines[2:]) and len(lines) > 3
    wide = [path for path, bits in found.config.layer_bits.items() if str(bits) == "W8A8"]
    assert 0 < len(wide) < 10
    loss = found.metrics["top1"]["teacher"] - found.metrics["top1"]["student"]
    assert loss <= 2


@pytest.mark.integration
def test_where_nothing_does_eight_bits_are_taken_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bad = Verdict(
        word="poor", loss=9, low=5, high=12, unit="points", ranked=True, why="9 points are lost"
    ).model_dump(mode="json")

    def judged(*_: Any) -> dict[str, Any]:
        return {"verdict": bad}

    monkeypatch.setattr(measuring, "judged", judged)
    found = datafree.quantize(
        "digits_resnet8", max_drop=3, reconstruction="adaround",
        reconstruction_options={"iterations": 1}, **QUICK,
    )  # fmt: skip
    assert found.config.scheme.label == "W8A8"
    told = found.metrics["search"]
    assert "loses more than was asked for" in told["taken"]
    assert [(one["what"], one["loss"]) for one in told["tries"]] == [("W4A8", 9), ("W8A8", 9)]


@pytest.mark.integration
def test_what_was_tried_is_kept_of_a_run_that_fails_by_its_verdict(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    poor = Verdict(
        word="poor", loss=9, low=5, high=12, unit="points", ranked=True, why="9 points are lost"
    ).model_dump(mode="json")

    def judged(*_: Any) -> dict[str, Any]:
        return {"verdict": poor}

    monkeypatch.setattr(measuring, "judged", judged)
    with pytest.raises(VerdictError):
        datafree.quantize(
            "digits_resnet8", target="executorch", max_drop=3, fail_below="poor",
            output=tmp_path / "run", **QUICK,
        )  # fmt: skip
    told = json.loads((tmp_path / "run" / "search.json").read_text())
    assert [one["what"] for one in told["tries"]] == ["W8A8"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"average_bits": 4}, "choose bits as well"),
        ({"holdout": 0}, "nothing would be compared"),
        ({"training": "dfqf"}, "too long"),
    ],
)
def test_what_leaves_nothing_to_search_is_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        datafree.quantize("digits_resnet8", max_drop=1, **{**QUICK, **changes})
