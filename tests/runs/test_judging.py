"""What a run is told of its student, and what it is to fail at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

import datafree
from datafree.config import RunConfig
from datafree.errors import ConfigError, VerdictError
from datafree.runs.judging import check_verdict, measured_verdict, next_command
from networks import SPEC, build

QUICK: dict[str, Any] = {
    "input_shape": SPEC.shape, "method": "noise", "images": 8, "holdout": 64, "device": "cpu",
    "calibrator": "minmax", "export": False,
}  # fmt: skip


def tiny() -> nn.Module:
    return build("Tiny")


def test_a_run_has_a_verdict() -> None:
    result = datafree.quantize(tiny(), bits="W8A8", **QUICK)
    verdict = result.verdict
    assert verdict is not None and verdict.model_dump(mode="json") == result.metrics["verdict"]
    assert result.metrics["held_out"]["images"] == 64
    assert 32 <= result.metrics["held_out"]["features"]["images"] <= 64
    assert result.metrics["held_out"]["features"]["worst_layer_db"] is not None


def test_a_run_that_fails_has_its_result(tmp_path: Path) -> None:
    options: dict[str, Any] = {**QUICK, "bias_correction": "none", "output": tmp_path / "run"}
    del options["input_shape"], options["holdout"]
    with pytest.raises(VerdictError, match="the verdict is poor") as caught:
        datafree.quantize("digits_resnet8", bits="W2A2", fail_below="poor", **options)
    result = caught.value.result
    assert result.verdict.word == "poor" and (tmp_path / "run" / "metrics.json").exists()


def test_without_comparison_there_is_no_verdict() -> None:
    without: dict[str, Any] = {**QUICK, "holdout": 0}
    assert datafree.quantize(tiny(), bits="W8A8", **without).verdict is None


@pytest.mark.parametrize(
    ("changes", "own", "text"),
    [
        ({"holdout": 0}, False, "nothing is compared"),
        ({"data": "test.npz"}, True, "a measure of your own"),
        ({"student": "net.py:small", "training": "distill"}, False, "another network"),
    ],
)
def test_a_limit_without_a_verdict_is_refused(
    changes: dict[str, Any], own: bool, text: str
) -> None:
    config = RunConfig(model="digits_resnet8", fail_below="check", **changes)
    with pytest.raises(ConfigError, match=text):
        check_verdict(config, own_measure=own)
    check_verdict(config.model_copy(update={"fail_below": None}), own_measure=own)


def test_labelled_images_decide_where_there_are_some() -> None:
    found = measured_verdict({"top1": {"teacher": 90.0, "student": 60.0}, "test_images": 500})
    assert found["verdict"]["word"] == "poor" and found["verdict"]["measured"]
    assert measured_verdict({"metric": {"teacher": 1.0, "student": 0.0}, "test_images": 5}) == {}


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({"bits": "W2A2"}, "--recipe balanced --output run-balanced"),
        ({"bits": "W2A2", "reconstruction": "adaround"}, "--bits W2A8 --output run-W2A8"),
        ({"bits": "W2A8", "reconstruction": "adaround"}, "--bits W8A8 --output run-W8A8"),
        ({"bits": "W6A6"}, "--bits W6A8 --output run-W6A8"),
        ({"bits": "W8A8"}, "--recipe balanced --output run-balanced"),
    ],
)
def test_the_command_to_try_next(changes: dict[str, Any], command: str) -> None:
    told = next_command(RunConfig(model="digits_resnet8", **changes), Path("run"))
    assert told == f"datafree quantize --config run/config.yaml {command}"


def test_where_nothing_is_left_to_try_one_measures() -> None:
    config = RunConfig(model="digits_resnet8", bits="W8A8", reconstruction="adaround")
    assert next_command(config, Path("run")) == "datafree evaluate run --data FILE"
