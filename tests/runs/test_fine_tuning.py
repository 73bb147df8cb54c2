"""Fine-tuning and distillation as stages of a run: folders, files, what comes back from disk."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import datafree
from datafree.cli.console import measured_rows
from datafree.config import InputSpec, ModelConfig, RunConfig, build, merge
from datafree.errors import ConfigError, DataError, ModelError, UnknownNameError
from datafree.generators import Generator, GeneratorConfig, save_generator
from datafree.recipes import laid_over, recipe_fields
from datafree.registry import available, load
from datafree.runs.fine_tuning import other_network
from datafree.runs.finished import evaluate_run, restored
from datafree.runs.pipeline import Result, run
from datafree.training.base import Trainer
from datafree.zoo import load_digits_test

pytestmark = pytest.mark.integration

QUICK: dict[str, Any] = {
    "warmup": 3, "iterations": 4, "batch_size": 8, "calibration_images": 16, "holdout": 16,
    "checks": 2, "latent": 10,
}  # fmt: skip
CONFIG = RunConfig(
    model="digits_resnet8",
    bits="W3A3",
    training="dfqf",
    training_options=QUICK,
    images=4,
    holdout=8,
    export=False,
    latency=False,
    device="cpu",
)
SMALL = """
from torch import nn

def small():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10)
    )

def other_classes():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
"""


def changed(**changes: Any) -> RunConfig:
    return build(RunConfig, merge(CONFIG.model_dump(), changes), "run")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run(changed(export=True), folder=tmp_path_factory.mktemp("runs") / "made")


@pytest.fixture(scope="module")
def folder(made: Result) -> Path:
    assert made.folder is not None
    return made.folder


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.py"
    path.write_text(SMALL)
    return path


def test_a_tuned_run_writes_generators_and_a_checked_student(made: Result, folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.yaml", "generator.safetensors", "warm_generator.safetensors", "grid.png",
        "images.safetensors", "metrics.json", "report.html", "student.onnx", "student.pt2",
        "student.safetensors",
    }  # fmt: skip
    results = json.loads((folder / "metrics.json").read_text())["results"]
    assert results["training"]["warm-up"]["steps"] == 3
    assert results["training"]["fine-tuning"]["steps"] == 4
    assert results["held_out"]["images"] == 8
    assert results["onnx"]["parity"]["mismatches"] == 0
    assert results["images"] == made.images.digest()
    assert len(made.images) == 4 and made.images.metadata["method"] == "generator"


@pytest.mark.parametrize("name", sorted(set(available("datafree.training")) - {"distill"}))
@pytest.mark.parametrize("batch_norm", ["folded", "scaled", "frozen", "train"])
def test_a_tuned_student_comes_back_from_disk(name: str, batch_norm: str, tmp_path: Path) -> None:
    known = load("datafree.training", name, Trainer).model_fields
    options = {k: v for k, v in QUICK.items() if k in known} | {"batch_norm": batch_norm}
    result = run(changed(training=name, training_options=options), folder=tmp_path)
    loaded = restored(tmp_path)
    with torch.no_grad():
        expected = result.student(result.images.images)
        torch.testing.assert_close(loaded.student(result.images.images), expected)


def test_both_students_are_measured_on_labels(tmp_path: Path) -> None:
    pixels, labels = load_digits_test()
    data = tmp_path / "digits.npz"
    np.savez(data, images=pixels, labels=labels)
    result = run(changed(data=data, limit=60))
    assert set(result.metrics["top1"]) == {"teacher", "student", "student after the last step"}
    assert "held_out" not in result.metrics
    rows = dict(measured_rows(result.metrics))
    assert "steps in" in rows["warm-up"]
    assert "(best)" in rows["fine-tuning"]


def test_the_warm_generator_serves_another_bit_width(folder: Path) -> None:
    warm = folder / "warm_generator.safetensors"
    again = run(changed(generator=warm, bits="W2A2"))
    assert set(again.metrics["training"]) == {"fine-tuning"}
    assert not torch.equal(next(iter(again.student.parameters())), torch.zeros(1))


def test_a_saved_generator_makes_images_for_other_methods(folder: Path) -> None:
    path = str(folder / "generator.safetensors")
    result = run(changed(training=None, method="generator", method_options={"path": path}))
    assert result.images.metadata["method"] == "generator"
    assert len(result.images) == 4


@pytest.mark.parametrize("bits", ["float", "W4A4"])
def test_distillation_into_another_network(bits: str, small: Path, tmp_path: Path) -> None:
    config = changed(
        student=f"{small}:small",
        training="distill",
        training_options=QUICK,
        float_student=bits == "float",
        bits="W8A8" if bits == "float" else bits,
        export=True,
        latency=False,
    )
    result = run(config, folder=tmp_path / "run")
    assert "sqnr_db" not in result.metrics
    assert result.metrics["onnx"]["parity"]["mismatches"] == 0
    loaded = restored(tmp_path / "run", trust_code=True)
    x = result.images.images
    with torch.no_grad():
        assert loaded.student(x).shape == (4, 10)
        torch.testing.assert_close(loaded.student(x), result.student(x))
    data = {"data": _digits(tmp_path), "limit": 30}
    again = evaluate_run(tmp_path / "run", data, trust_code=True).measured
    assert set(again["top1"]) == {"teacher", "student"}


def _digits(folder: Path) -> Path:
    pixels, labels = load_digits_test()
    np.savez(folder / "d.npz", images=pixels, labels=labels)
    return folder / "d.npz"


def test_a_student_in_memory_starts_from_its_own_weights() -> None:
    layer = nn.Linear(64, 10)
    student = nn.Sequential(nn.Flatten(), layer)
    nn.init.zeros_(layer.weight)
    before = layer.weight.clone()
    options = {**QUICK, "learner_lr": 1e-8, "learner_decay": 0.0}
    result = datafree.distill(
        "digits_resnet8", student=student, training_options=options, device="cpu"
    )
    assert torch.equal(layer.weight, before)
    (weight, _) = result.student.parameters()
    assert weight.abs().max() < 1e-3
    assert result.metrics["training"]["distillation"]["steps"] == 3


def test_a_recipe_of_distill_is_changed_by_options() -> None:
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    made = datafree.distill(
        "digits_resnet8", student=student, recipe="short", training_options=QUICK, device="cpu"
    ).config
    short = recipe_fields("short", "distill")["training_options"]
    assert made.training_options == {**short, **QUICK}
    with pytest.raises(UnknownNameError, match=r"recipe of distill 'best'.*short"):
        datafree.distill("digits_resnet8", student=student, recipe="best")


def test_students_in_memory_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    place = tmp_path / "run"
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
    with pytest.raises(ModelError, match=r"Sequential maps images .* to 7 classes"):
        datafree.distill("digits_resnet8", student=other, output=place, device="cpu")
    bare = nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(10))
    with pytest.raises(ModelError, match="has no parameters"):
        datafree.distill("digits_resnet8", student=bare, output=place, device="cpu")
    assert not place.exists()


@pytest.mark.parametrize("batch_norm", ["folded", "scaled", "frozen", "train"])
def test_noise_is_measured_against_the_same_layers(batch_norm: str) -> None:
    options = {**QUICK, "batch_norm": batch_norm, "student_lr": 1e-9, "steps_lr": 1e-9}
    tuned = run(changed(bits="W8A8", training="gdfq", training_options=options))
    assert min(tuned.metrics["sqnr_db"].values()) > 15


def test_weights_of_another_network_follow_the_seed(small: Path) -> None:
    spec = InputSpec(shape=(1, 8, 8), mean=(0.0,), std=(1.0,), classes=10)
    described = ModelConfig(source=f"{small}:small")
    networks = [other_network(described, spec, seed) for seed in (0, 0, 1)]
    first = [next(iter(network.parameters())) for network in networks]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


def test_a_student_of_other_classes_is_refused(small: Path) -> None:
    config = changed(
        student=f"{small}:other_classes", float_student=True, training="distill",
        training_options=QUICK,
    )  # fmt: skip
    with pytest.raises(
        ModelError, match=r"to 3 classes and its teacher .* to 10 classes: choose a"
    ):
        run(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": None, "generator": "g.safetensors"}, "generator goes with training"),
        (
            {
                "reconstruction": "qdrop",
                "float_student": True,
                "student": "digits_resnet8",
                "training": "distill",
            },
            "a float student has no rounding",
        ),
        ({"average_bits": 4}, "no mixed precision"),
        ({"float_student": True}, "float_student goes with student"),
        ({"bias_correction": "empirical"}, "leave bias_correction out"),
        ({"training": "distill"}, "distill goes with student"),
        ({"student": "digits_resnet8"}, "distill goes with student"),
        ({"max_time": -1.0}, "more than 0 seconds"),
        ({"training": None, "precision": "bf16"}, "precision goes with training"),
    ],
)
def test_contradictions_are_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        changed(**changes)


def test_a_generator_is_no_image_method_of_a_training_that_dreams(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give the file as generator"):
        run(changed(method="generator", method_options={"path": str(tmp_path / "g.safetensors")}))


def test_training_starts_from_learned_rounding(tmp_path: Path) -> None:
    rounding = {"reconstruction": "adaround", "reconstruction_options": {"iterations": 10}}
    made = run(changed(**rounding), folder=tmp_path / "run")
    units = made.metrics["reconstruction"]
    assert sum(unit["rounded"] for unit in units) > 70_000
    assert "roundings left undecided" in dict(measured_rows(made.metrics))
    loaded = restored(tmp_path / "run")
    x = torch.rand(4, *made.spec.shape)
    assert torch.equal(loaded.student(x), made.student(x))


def test_rounding_that_training_would_forget_is_told_before_anything_long() -> None:
    with pytest.raises(ConfigError, match="weights=minmax forgets"):
        run(changed(training="gdfq", training_options=QUICK, reconstruction="adaround"))


def test_layers_whose_biases_are_not_corrected_before_training_are_told() -> None:
    corrected = run(changed(bias_correction="analytic"))
    assert corrected.metrics["bias_not_corrected"] == ["stem.0"]
    assert "bias_not_corrected" not in run(changed()).metrics


def test_mistakes_are_told_before_anything_long() -> None:
    with pytest.raises(UnknownNameError, match="dfqf"):
        run(changed(training="dfqff"))
    with pytest.raises(ConfigError, match="bn_statistics looks at no images"):
        run(changed(calibrator="bn_statistics"))
    unfolded: dict[str, Any] = {
        "training": "gdfq", "training_options": {"batch_norm": "frozen"},
    }  # fmt: skip
    with pytest.raises(ConfigError, match="change the folded teacher"):
        run(changed(**unfolded, equalize=True))
    with pytest.raises(ConfigError, match="and bias_correction change the folded teacher"):
        run(changed(**unfolded, bias_correction="analytic"))
    with pytest.raises(DataError, match=r"nowhere\.safetensors"):
        run(changed(generator="nowhere.safetensors"))


def test_a_generator_changed_in_place_is_another_run(tmp_path: Path) -> None:
    path = tmp_path / "g.safetensors"
    config = GeneratorConfig(shape=(1, 8, 8), classes=10, latent=10, condition="none")
    chosen = changed(training=None, method="generator", method_options={"path": str(path)})
    digests: list[str] = []
    for seed in (0, 1):
        save_generator(Generator(config, torch.Generator().manual_seed(seed)), path)
        result = run(chosen, folder=tmp_path / "run")
        digests.append(result.images.digest())
        (tmp_path / "run" / "metrics.json").unlink()
    assert digests[0] != digests[1]


KILLED = (
    *("quantize", "digits_resnet8", "--bits", "W3A3", "--training", "dsg_qat", "--images", "4"),
    *("--training-option", "warmup=15", "--training-option", "iterations=60"),
    *("--training-option", "batch_size=16", "--training-option", "checkpoint_minutes=0"),
    *("--training-option", "calibration_images=32", "--training-option", "holdout=32"),
    *("--training-option", "margin_images=32", "--device", "cpu", "--output"),
)


@pytest.mark.e2e
def test_after_kill_9_resume_ends_with_the_same_metrics(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "datafree"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run([*command, *KILLED, str(whole)], check=True, capture_output=True)
    process = subprocess.Popen([*command, *KILLED, str(broken)], stdout=subprocess.DEVNULL)
    checkpoint = broken / "unfinished" / "training" / "fine-tuning.safetensors"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert checkpoint.exists() and not (broken / "metrics.json").exists()
    done = subprocess.run(
        [*command, "quantize", "--resume", str(broken)], check=True, capture_output=True, text=True
    )
    assert "fine-tuning" in done.stdout
    one, two = (json.loads((f / "metrics.json").read_text()) for f in (whole, broken))
    for results in (one["results"], two["results"]):
        for phase in results["training"].values():
            del phase["seconds"]
    assert one["results"] == two["results"]
    assert one["hashes"]["student.safetensors"] == two["hashes"]["student.safetensors"]
    again = subprocess.run(
        [*command, "quantize", "--resume", str(broken)], capture_output=True, text=True, check=False
    )
    assert again.returncode == 2
    assert "is finished: there is nothing to resume" in again.stderr


@pytest.mark.e2e
def test_two_bits_per_tensor_keep_what_calibration_loses(tmp_path: Path) -> None:
    pixels, labels = load_digits_test()
    data = tmp_path / "digits.npz"
    np.savez(data, images=pixels, labels=labels)
    found: dict[str, float] = {}
    for recipe in ("fast", "trained"):
        scheme = {"bits": "W2A2", "weight_granularity": "tensor"}
        fixed = {**scheme, "data": data, "export": False, "device": "cpu"}
        base = laid_over({"model": "digits_resnet8"}, recipe)
        made = run(build(RunConfig, merge(base, fixed), recipe))
        found[recipe] = made.metrics["top1"]["student"]
    assert found["trained"] > 97
    assert found["fast"] < found["trained"] - 10
