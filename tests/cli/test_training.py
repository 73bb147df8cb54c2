"""Fine-tuning and distillation from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import datafree
from datafree.cli.app import app
from datafree.config import ModelConfig, load_config
from datafree.data import calibration_set
from datafree.errors import ConfigError
from datafree.models import load_teacher
from datafree.runs.finished import restored
from datafree.runs.folder import interrupted
from datafree.zoo import ZOO

pytestmark = pytest.mark.integration

QUICK = (
    *("--training-option", "warmup=2", "--training-option", "iterations=3"),
    *("--training-option", "batch_size=8", "--training-option", "calibration_images=16"),
    *("--training-option", "holdout=16", "--training-option", "width=4", "--device", "cpu"),
)
SMALL = """
from torch import nn

def small():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "small.py").write_text(SMALL)
    return tmp_path


def call(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_only_unfinished_runs_are_resumed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run to resume"):
        interrupted(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    assert interrupted(tmp_path) == tmp_path / "config.yaml"
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(ConfigError, match="is finished: there is nothing to resume"):
        interrupted(tmp_path)


@pytest.mark.usefixtures("place")
def test_from_fine_tuning_to_another_width_and_to_images() -> None:
    told = call(
        "quantize", "digits_resnet8", "--bits", "W3A3", "--training", "dfqf", *QUICK, "--images",
        "4", "--max-time", "5m", "--output", "first",
    )  # fmt: skip
    assert "expected to take" in told
    assert "fine-tuning" in told and "3 steps in" in told
    config = load_config(Path("first/config.yaml"))
    assert config.max_time == 300
    assert config.training_options["iterations"] == 3
    warm = "first/warm_generator.safetensors"
    told = call(
        "quantize", "digits_resnet8", "--bits", "W2A2", "--training", "dfqf", *QUICK,
        "--generator", warm, "--output", "second",
    )  # fmt: skip
    assert "2 steps in" not in told  # no warm-up
    call(
        "quantize", "digits_resnet8", "--images", "first/generator.safetensors", "--holdout", "0",
        "--device", "cpu", "--output", "third",
    )  # fmt: skip
    assert restored(Path("third")).images.metadata["method"] == "generator"


@pytest.mark.usefixtures("place")
def test_distill_without_and_with_bits() -> None:
    options = [part if part != "--training-option" else "-o" for part in QUICK]
    told = call("distill", "digits_resnet8", "--student", "small.py:small", *options)
    assert "weights in float" in told and "distillation" in told
    assert load_config(Path("run/config.yaml")).float_student
    told = call(
        "distill", "digits_resnet8", "--student", "small.py:small", "--bits", "W4A4", *options,
        "--output", "low",
    )  # fmt: skip
    assert "% of float" in told
    assert restored(Path("low"), trust_code=True).config.label == "W4A4"


@pytest.mark.usefixtures("place")
def test_a_recipe_of_distill_is_changed_by_options() -> None:
    options = [part if part != "--training-option" else "-o" for part in QUICK]
    call("distill", "digits_resnet8", "--student", "small.py:small", "--recipe", "short", *options)
    config = load_config(Path("run/config.yaml"))
    chosen = config.training_options
    assert (chosen["student_steps"], chosen["gamma"], chosen["iterations"]) == (5, 1.0, 3)


def test_distill_says_what_it_needs() -> None:
    with pytest.raises(ConfigError, match="give a MODEL and the network to distill it into"):
        CliRunner().invoke(app, ["distill", "digits_resnet8"], catch_exceptions=False)


def test_methods_lists_fine_tuning() -> None:
    told = call("methods")
    assert "trainings" in told
    for name in ("gdfq", "dsg_qat", "dfqf", "distill"):
        assert name in told


FIXED = (
    *("--training-option", "iterations=3", "--training-option", "batch_size=8", "--device", "cpu"),
    *("--training-option", "checks=1", "--no-latency", "--no-report", "--no-isolate"),
)


def learned_from(folder: str) -> dict[str, object]:
    told = json.loads((Path(folder) / "metrics.json").read_text())
    return told["results"]["training"]["fine-tuning"]["learned_from"]


@pytest.mark.usefixtures("place")
def test_a_training_learns_on_the_run_s_own_images_and_on_those_of_a_file() -> None:
    told = call(
        "quantize", "digits_resnet8", "--bits", "W3A3", "--method", "zeroq", "-o", "iterations=5",
        "--images", "16", "--training", "intraq", *FIXED, "--output", "own",
    )  # fmt: skip
    assert "16 by zeroq (iterations=5)" in told
    assert learned_from("own") == {"images": 16, "method": "zeroq"}
    assert {"images.safetensors", "student.safetensors"} <= {p.name for p in Path("own").iterdir()}
    assert not list(Path("own").glob("*generator*"))
    call(
        "quantize", "digits_resnet8", "--bits", "W2A2", "--images", "own/images.safetensors",
        "--training", "synq", *FIXED, "--output", "file",
    )  # fmt: skip
    assert learned_from("file") == {"images": 16, "method": "zeroq"}
    # A finished run is read back as it was.
    assert len(restored(Path("own")).images) == 16


@pytest.mark.usefixtures("place")
def test_real_images_are_called_so() -> None:
    entry = ZOO["digits_resnet8"]
    spec = load_teacher(ModelConfig(source="digits_resnet8")).spec
    photos = calibration_set(Path(str(entry.train_sample)), spec, 12, seed=0)
    result = datafree.quantize(
        "digits_resnet8", bits="W3A3", images=photos, training="fixed_set",
        training_options={"iterations": 2, "batch_size": 4, "label_weight": 1.0}, holdout=0,
    )  # fmt: skip
    told = result.metrics["training"]["fine-tuning"]
    assert told["learned_from"] == {"images": 12, "method": "real"}
    assert "student classes" in told["history"][-1]


@pytest.mark.usefixtures("place")
def test_a_generator_beside_a_fixed_set_is_refused() -> None:
    given = ("quantize", "digits_resnet8", "--bits", "W3A3", "--training")
    with pytest.raises(ConfigError, match="hast learns from images, not beside a generator"):
        call(*given, "hast", "--generator", "a")
    with pytest.raises(ConfigError, match="gdfq dreams its own images"):
        call(*given, "gdfq", "--images", "a.safetensors")


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("training", ["fixed_set", "gdfq"])
def test_a_plan_names_whose_images_a_training_learns_from(training: str) -> None:
    steps = ("--training-option", "iterations=2", "--images", "4", "--method", "noise")
    shown = call("quantize", "digits_resnet8", "--training", training, *steps, "--dry-run")
    assert ("4 by noise" in shown) == (training == "fixed_set")
    assert ("synthesis" in shown) == (training == "fixed_set")
