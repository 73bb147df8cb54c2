"""The command of a report, given to the command line, asks for the same run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

import datafree
from datafree.cli import console
from datafree.cli.app import app
from datafree.config import RunConfig
from datafree.report.command import call, changes, command, folded

QUANTIZED: list[dict[str, Any]] = [
    {},
    {"bits": "W4A8", "seed": 3, "report": False, "export": False},
    {"target": "tensorrt", "policy": "first_last_8"},
    {"target": "paper", "placement": "after_activation", "symmetric_activations": True},
    {"layer_bits": {"stem.0": 8, "a layer": 4}, "bits": "W4A4", "split_outliers": 0.02},
    {"input_shape": (3, 32, 32), "mean": (0.4914, 0.48, 0.1 + 0.2), "std": (0.2, 0.2, 0.2)},
    {"input_shape": ((3, 8, 8), (10,)), "mean": ((0.1, 0.2, 0.3), ()), "std": ((1, 1, 1), ())},
    {"method": "zeroq", "method_options": {"iterations": 20, "init": "a b", "flag": True}},
    {"average_bits": 3.5, "candidate_bits": (2, 4, 8), "images": 7, "data": Path("a b/test.npz")},
    {"training": "dfqf", "training_options": {"steps": 3}, "max_time": 90, "bits": "W2A2"},
    {"protocol": "genie", "bits": "W2A4"},
    {"protocol": "dsg", "target": "onnxruntime", "equalize": True, "images": 64},
    {"protocol": "dsg", "method_options": {"iterations": 5, "epsilon": 0.5}},
    {"protocol": "brecq", "policy": "all", "reconstruction": "none", "images": 32},
    {"weights_file": Path("w's.safetensors"), "limit": 5, "images_per_batch": 2},
]  # fmt: skip
DISTILLED: list[dict[str, Any]] = [
    {"float_student": True},
    {"bits": "W4A4", "training_options": {"warmup": 50}, "student_weights_file": Path("s.pth")},
]


def asked(text: str, monkeypatch: pytest.MonkeyPatch) -> tuple[RunConfig, Path]:
    seen: list[tuple[RunConfig, Path]] = []

    def keep(config: RunConfig, output: Path, *, force: bool) -> None:
        seen.append((config, output))

    monkeypatch.setattr(console, "run_and_show", keep)
    name, *words = shlex.split(text)
    assert name == "datafree"
    app.main(words, standalone_mode=False)
    return seen[0]


@pytest.mark.parametrize("fields", QUANTIZED)
def test_the_command_asks_for_the_same_run(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(model="digits_resnet8", **fields)
    text = command(config, "my run")
    assert text is not None
    assert asked(text, monkeypatch) == (config, Path("my run"))


@pytest.mark.parametrize("fields", DISTILLED)
def test_the_command_of_a_distillation_too(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(model="digits_resnet8", student="net.py:f", training="distill", **fields)
    text = command(config, "out")
    assert text is not None
    assert asked(text, monkeypatch) == (config, Path("out"))


def test_only_what_differs_from_the_defaults_is_told() -> None:
    assert command(RunConfig(model="net.pt2"), "run") == "datafree quantize net.pt2 --output run"
    assert changes(RunConfig(model="net.pt2", target="tensorrt")) == {"target": "tensorrt"}


def test_a_network_in_memory_has_no_command_and_a_call() -> None:
    config = RunConfig(model="<Net in memory>", bits="W4A4", data=Path("x.npz"))
    assert command(config, "run") is None
    assert call(config).splitlines()[2:] == [
        "result = datafree.quantize(", "    model,", "    bits='W4A4',", "    data='x.npz',", ")",
    ]  # fmt: skip


def test_the_call_asks_for_the_same_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[RunConfig] = []

    def keep(config: RunConfig, **_: object) -> None:
        seen.append(config)

    monkeypatch.setattr("datafree.api.carry_out", keep)
    config = RunConfig(model="digits_resnet8", bits="W3A3", layer_bits={"stem.0": 8}, seed=4)
    exec(call(config), {"datafree": datafree})
    assert seen == [config]


def test_a_long_command_has_an_option_a_line_and_is_the_same() -> None:
    text = command(
        RunConfig(model="a b.pt2", bits="W4A4", data=Path("c d.npz"), limit=300), "r" * 60
    )
    assert text is not None
    assert folded(text).count(" \\\n  --") == 4
    assert shlex.split(folded(text).replace("\\\n", "")) == shlex.split(text)
    assert folded("datafree report run") == "datafree report run"
