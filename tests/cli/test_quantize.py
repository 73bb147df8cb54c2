"""`datafree quantize`: its options, repeated runs, what it prints and writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import datafree
from commands import FACTORY, INPUT, QUICK, Command, refused
from datafree.config import load_config
from datafree.runs.finished import restored
from datafree.zoo import digits_resnet8, load_digits_test

pytestmark = pytest.mark.integration


@pytest.mark.usefixtures("no_export")
def test_a_recipe_is_changed_by_other_options(datafree_command: Command) -> None:
    done = datafree_command(
        "quantize", "digits_resnet8", "--recipe", "balanced", "--bits", "W3A3", "--images", "2",
        "-o", "iterations=2", "--reconstruction-option", "iterations=2", "--holdout", "0",
    )  # fmt: skip
    assert done.code == 0, done.err
    saved = load_config(Path("run/config.yaml"))
    assert saved.label == "W3A3"
    assert saved.reconstruction == "adaround"
    assert saved.reconstruction_options == saved.method_options == {"iterations": 2}
    assert saved.images == 2


@pytest.mark.usefixtures("no_export")
def test_config_repeats_a_run_exactly(datafree_command: Command, tmp_path: Path) -> None:
    first = datafree_command("quantize", "digits_resnet8", *QUICK, "--bits", "w4a8", "--seed", "3")
    assert first.code == 0, first.err
    for part in ("W4A8", "zeroq (iterations=3)", "minmax", "layer policy", "seed", "metrics.json"):
        assert part in first.out
    again = datafree_command("quantize", "--config", "run/config.yaml", "--output", "again")
    assert again.code == 0, again.err
    for name in ("config.yaml", "student.safetensors", "grid.png"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    one, two = (
        json.loads((tmp_path / name / "metrics.json").read_text(encoding="utf-8"))
        for name in ("run", "again")
    )
    assert one["results"] == two["results"]
    images = [
        datafree.SyntheticSet.load(tmp_path / n / "images.safetensors") for n in ("run", "again")
    ]
    assert images[0].digest() == images[1].digest() == one["results"]["images"]


@pytest.mark.usefixtures("no_export")
def test_options_change_a_repeated_run(datafree_command: Command, tmp_path: Path) -> None:
    assert datafree_command("quantize", "digits_resnet8", *QUICK, "--bits", "W4A4").code == 0
    changed = ("--seed", "1", "--calibrator", "mse", "-o", "iterations=2")
    done = datafree_command("quantize", "--config", "run/config.yaml", *changed, "--output", "b")
    assert done.code == 0, done.err
    before, after = (load_config(tmp_path / name / "config.yaml") for name in ("run", "b"))
    assert (after.seed, after.calibrator) == (1, "mse")
    assert after.method_options == {"iterations": 2}
    assert after.scheme == before.scheme
    assert after.images == before.images == 4


@pytest.mark.usefixtures("no_export")
def test_an_existing_run_needs_force(datafree_command: Command) -> None:
    arguments = ("quantize", "digits_resnet8", *QUICK)
    assert datafree_command(*arguments).code == 0
    refused(datafree_command(*arguments), "run exists", "--force")
    assert datafree_command(*arguments, "--force").code == 0


@pytest.mark.usefixtures("no_export", "material")
def test_a_network_of_the_user_with_weights(datafree_command: Command, tmp_path: Path) -> None:
    save_file(digits_resnet8().state_dict(), tmp_path / "own.safetensors")
    own = ("digits_resnet8", "--weights-file", "own.safetensors", *QUICK, "--output", "a")
    assert datafree_command("quantize", *own).code == 0
    plain = ("net.py:net", *INPUT, *QUICK, "--method", "noise", "-o", "std=1.0")
    done = datafree_command("quantize", *plain[:-2], "--output", "b")
    refused(done, "iterations")  # an option of zeroq, not of noise
    bare = ("net.py:net", *INPUT, "--method", "noise", "--images", "4", "--holdout", "2")
    assert datafree_command("quantize", *bare, "--output", "b").code == 0


@pytest.mark.usefixtures("no_export")
def test_mixed_precision_from_the_command_line(datafree_command: Command) -> None:
    done = datafree_command(
        "quantize", "digits_resnet8", *QUICK, "--average-bits", "4", "--candidate-bits", "2,4,8"
    )
    assert done.code == 0, done.err
    assert "digits_resnet8 WmixedA8" in done.out
    assert "bits on average" in done.out
    assert "for 4 bits on average" in done.out
    assert "share of weights" in done.out
    saved = load_config(Path("run/config.yaml"))
    assert (saved.average_bits, saved.candidate_bits) == (4, (2, 4, 8))
    assert saved.scheme.weight_range == "mse"
    # A budget takes the place of the average; the bits to choose from stay.
    again = datafree_command(
        "quantize", "--config", "run/config.yaml", "--budget", "30kB", "--output", "again"
    )
    assert again.code == 0, again.err
    assert "for 30kB" in again.out
    changed = load_config(Path("again/config.yaml"))
    assert (changed.average_bits, changed.budget) == (None, "30kB")
    assert changed.candidate_bits == (2, 4, 8)


@pytest.mark.usefixtures("no_export")
def test_reconstruction_from_the_command_line(datafree_command: Command) -> None:
    learned = ("--reconstruction", "qdrop", "--reconstruction-option", "iterations=2")
    done = datafree_command(
        "quantize", "digits_resnet8", "--bits", "W3A3", *QUICK, *learned, "--output", "low"
    )
    assert done.code == 0, done.err
    assert "qdrop (iterations=2)" in done.out
    config = load_config(Path("low/config.yaml"))
    assert config.scheme.weight_range == "mse"
    assert config.rounding is not None
    again = datafree_command("quantize", "--config", "low/config.yaml", "--output", "again")
    assert again.code == 0, again.err
    first, second = (json.loads((Path(p) / "metrics.json").read_text()) for p in ("low", "again"))
    learned_first, learned_second = (
        found["results"]["reconstruction"] for found in (first, second)
    )
    assert learned_first == learned_second
    assert Path("low/student.safetensors").read_bytes() == (
        Path("again/student.safetensors").read_bytes()
    )
    assert not Path("low/unfinished").exists()


def test_corrections_survive_the_disk(datafree_command: Command) -> None:
    """Bias correction gives the bias-free layers of a network biases; the run loads again."""
    Path("net.py").write_text(FACTORY.replace("4 * 36, 5)", "4 * 36, 5, bias=False)"))
    done = datafree_command(
        "quantize", "net.py:net", *INPUT, "--method", "noise", "--images", "8", "--holdout", "2",
        "--bits", "W3A8", "--weight-granularity", "tensor", "--equalize", "--bias-correction",
        "empirical", "--output", "low",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "equalization, empirical bias correction" in done.out
    assert "per tensor" in done.out
    config = load_config(Path("low/config.yaml"))
    assert config.equalize and config.bias_correction == "empirical"
    loaded = restored(Path("low"))
    x = torch.randn(4, 3, 8, 8)
    program = torch.export.load("low/student.pt2").module()
    torch.testing.assert_close(loaded.student(x), program(x), rtol=1e-4, atol=1e-5)
    assert loaded.student.get_submodule("3").bias is not None


def test_from_network_to_integer_model_without_any_image(datafree_command: Command) -> None:
    """What DFQ does: equalization, absorption, analytic correction, ranges from batch norms."""
    done = datafree_command(
        "quantize", "digits_resnet8", "--weight-granularity", "tensor", "--equalize",
        "--absorb-biases", "--split-outliers", "0.02", "--bias-correction", "analytic",
        "--calibrator", "bn_statistics", "--output", "dfq",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "outlier splitting (0.02), analytic bias correction" in done.out
    assert not Path("dfq/images.safetensors").exists()
    assert not Path("dfq/grid.png").exists()
    metrics = json.loads(Path("dfq/metrics.json").read_text())
    assert metrics["results"]["onnx"]["parity"]["mismatches"] == 0
    assert metrics["results"]["bias_not_corrected"] == ["stem.0"]
    assert metrics["results"]["held_out"]["images"] == 256  # made though none are calibrated with
    digits, labels = load_digits_test()
    teacher = restored(Path("dfq"))
    scaled = torch.from_numpy(digits).permute(0, 3, 1, 2) / 255
    x = (scaled - teacher.spec.mean[0]) / teacher.spec.std[0]
    program = torch.export.load("dfq/student.pt2").module()
    torch.testing.assert_close(teacher.student(x[:9]), program(x[:9]), rtol=1e-4, atol=1e-5)
    right = teacher.student(x).argmax(1) == torch.from_numpy(labels)
    assert float(right.float().mean()) > 0.98
    again = datafree_command("export", "dfq", "--output", "again.onnx")
    assert again.code == 0, again.err
