"""The command line: what it prints, what it writes, and one clear line for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import datafree
from datafree import pipeline
from datafree.cli import main
from datafree.config import load_config
from datafree.runs import load_run
from datafree.zoo import digits_resnet8, load_digits_test

QUICK = (
    *("--method", "zeroq", "-o", "iterations=3", "--images", "4", "--calibrator", "minmax"),
    *("--holdout", "2", "--device", "cpu"),
)
FACTORY = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))

def broken():
    model = net()
    model[0].weight.data[0] = float("nan")
    return model
"""
INPUT = ("--input-shape", "3,8,8", "--mean", "0,0,0", "--std", "1,1,1")


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture
def datafree_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """The command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["datafree", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
        said = capsys.readouterr()
        return Done(code, said.out, said.err)

    return call


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs leave out ONNX and .pt2, which take seconds."""
    original = pipeline.run

    def quick(config: datafree.RunConfig, **kwargs: object) -> datafree.Result:
        return original(config.model_copy(update={"export": False}), **kwargs)  # pyright: ignore

    monkeypatch.setattr(pipeline, "run", quick)


def refused(done: Done, *parts: str) -> None:
    """One line on standard error that holds all `parts`, and exit code 2."""
    assert done.code == 2, done
    lines = done.err.strip().splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]
    assert "Traceback" not in done.err


MISTAKES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "unknown model": (("digits_resnet9",), ("unknown model", "digits_resnet8")),
    "unknown method": (("digits_resnet8", "--method", "zeroqq"), ("zeroqq", "zeroq")),
    "unknown calibrator": (("digits_resnet8", "--calibrator", "minmx"), ("minmx", "minmax")),
    "weights out of range": (("digits_resnet8", "--bits", "W9A8"), ("weights", "8")),
    "activations out of range": (("digits_resnet8", "--bits", "W4A1"), ("activations", "2 to 8")),
    "malformed bits": (("digits_resnet8", "--bits", "eight"), ("eight", "W8A8")),
    "superscript bits": (("digits_resnet8", "--bits", "W²A8"), ("W8A8",)),
    "unknown reconstruction": (
        ("digits_resnet8", "--reconstruction", "adaroun"),
        ("adaroun", "adaround"),
    ),
    "reconstruction option without one": (
        ("digits_resnet8", "--reconstruction-option", "iterations=3"),
        ("reconstruction.name",),
    ),
    "average and budget": (
        ("digits_resnet8", "--average-bits", "4", "--budget", "1MB"),
        ("allocation", "either average_bits or budget"),
    ),
    "no budget for the bits": (
        ("digits_resnet8", "--candidate-bits", "2,4"),
        ("either average_bits or budget",),
    ),
    "malformed candidate bits": (
        ("digits_resnet8", "--average-bits", "4", "--candidate-bits", "2;4"),
        ("--candidate-bits", "numbers"),
    ),
    "small budget": (("digits_resnet8", "--budget", "1kB"), ("1kB", "the least is", "2 bits")),
    "weight range": (("digits_resnet8", "--weight-range", "max"), ("weight_range", "minmax")),
    "malformed option": (("digits_resnet8", "-o", "iterations"), ("iterations", "name=value")),
    "unknown option": (
        ("digits_resnet8", "--method", "zeroq", "-o", "steps=3"),
        ("steps", "iterations"),
    ),
    "policy": (("digits_resnet8", "--policy", "some"), ("policy", "first_last_8")),
    "weight type": (("digits_resnet8", "--weight-type", "int9"), ("weight_type", "uint8")),
    "images": (("digits_resnet8", "--images", "0"), ("images",)),
    "device": (("digits_resnet8", "--device", "abacus"), ("abacus", "auto, cpu")),
    "no shape": (("net.py:net",), ("--input-shape",)),
    "no mean": (("net.py:net", "--input-shape", "3,8,8"), ("--mean", "--std")),
    "wrong shape": (
        ("net.py:net", "--input-shape", "3,9,9", "--mean", "0,0,0", "--std", "1,1,1"),
        ("3, 9, 9", "--input-shape"),
    ),
    "shape of two": (("net.py:net", "--input-shape", "8,8"), ("3,224,224",)),
    "shape of words": (("net.py:net", "--input-shape", "a,b,c"), ("--input-shape", "numbers")),
    "mean of one": (
        ("net.py:net", "--input-shape", "3,8,8", "--mean", "0", "--std", "1,1,1"),
        ("mean has 1 values",),
    ),
    "no batch norm": (("net.py:net", *INPUT, "--method", "dsg"), ("dsg", "noise")),
    "not finite": (("net.py:broken", *INPUT), ("NaN", "0.weight")),
    "unknown factory": (("net.py:nett", *INPUT), ("nett", "net")),
    "no such file": (("other.py:net", *INPUT), ("other.py",)),
    "absent weights": (("digits_resnet8", "--weights", "no.safetensors"), ("no.safetensors",)),
    "damaged weights": (("digits_resnet8", "--weights", "bad.safetensors"), ("bad.safetensors",)),
    "foreign weights": (("digits_resnet8", "--weights", "foreign.safetensors"), ("does not fit",)),
    "damaged archive": (("bad.pt2",), ("bad.pt2",)),
    "labels out of range": (("digits_resnet8", "--data", "labels.npz"), ("label 10", "0 to 9")),
    "no data": (("digits_resnet8", "--data", "no.npz"), ("no.npz",)),
    "neither": ((), ("MODEL", "--config")),
    "both": (("digits_resnet8", "--config", "config.yaml"), ("MODEL", "--config")),
    "no config": (("--config", "no.yaml"), ("no.yaml",)),
    "foreign config": (("--config", "bad.pt2"), ("bad.pt2",)),
    "output exists": (("digits_resnet8", "--output", "taken"), ("taken exists", "--force")),
    "not a run": (("digits_resnet8", "--output", "taken", "--force"), ("not a run",)),
}


@pytest.fixture
def material(tmp_path: Path) -> None:
    """Files that mistakes are made with."""
    (tmp_path / "net.py").write_text(FACTORY, encoding="utf-8")
    for name in ("bad.safetensors", "bad.pt2"):
        (tmp_path / name).write_bytes(b"not what the name says")
    save_file({"weight": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    pixels = np.zeros((2, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "labels.npz", images=pixels, labels=np.array([0, 10]))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").touch()


@pytest.mark.usefixtures("material")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gives_one_line_and_code_2(
    datafree_command: Command, tmp_path: Path, mistake: str
) -> None:
    arguments, parts = MISTAKES[mistake]
    refused(datafree_command("quantize", *arguments), *parts)
    assert not (tmp_path / "run").exists()
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("evaluate", "nowhere"), "nowhere"),
        (("export", "nowhere", "--output", "a.onnx"), "nowhere"),
        (("export", "nowhere", "--output", "a.tflite"), "onnx"),
        (("synthesize", "digits_resnet9"), "digits_resnet8"),
        (("synthesize", "digits_resnet8", "--method", "zeroqq"), "zeroq"),
    ],
)
def test_mistakes_of_other_commands(
    datafree_command: Command, arguments: tuple[str, ...], part: str
) -> None:
    refused(datafree_command(*arguments), part)


def test_a_place_that_cannot_be_written_is_told_in_one_line(
    datafree_command: Command, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    done = datafree_command("quantize", "digits_resnet8", *QUICK, "--output", "file/run")
    refused(done, "cannot read or write", "file/run")


def test_unknown_flags_are_usage_errors(datafree_command: Command) -> None:
    done = datafree_command("quantize", "digits_resnet8", "--bit", "W8A8")
    assert done.code == 2
    assert "--bit" in done.err


def test_recipes_are_listed_with_the_options_they_stand_for(datafree_command: Command) -> None:
    done = datafree_command("recipes")
    assert done.code == 0
    for text in ("dfq", "fast", "balanced", "best", "bn_statistics", "--equalize"):
        assert text in done.out


@pytest.mark.usefixtures("no_export")
def test_a_recipe_is_changed_by_other_options(datafree_command: Command) -> None:
    done = datafree_command(
        "quantize", "digits_resnet8", "--recipe", "balanced", "--bits", "W3A3", "--images", "2",
        "-o", "iterations=2", "--reconstruction-option", "iterations=2", "--holdout", "0",
    )  # fmt: skip
    assert done.code == 0, done.err
    saved = load_config(Path("run/config.yaml"))
    assert saved.scheme.label == "W3A3"
    assert saved.reconstruction is not None
    assert (saved.reconstruction.name, saved.reconstruction.options) == (
        "adaround", {"iterations": 2},
    )  # fmt: skip
    assert saved.synthesis.options == {"iterations": 2}
    assert saved.images == 2


def test_an_unknown_recipe_is_one_line(datafree_command: Command) -> None:
    refused(datafree_command("quantize", "digits_resnet8", "--recipe", "bst"), "recipe", "best")


def test_methods_lists_all(datafree_command: Command) -> None:
    done = datafree_command("methods")
    assert done.code == 0
    names = ("noise", "zeroq", "dsg", "minmax", "ema", "percentile", "mse", "iterations=")
    for name in names:
        assert name in done.out


def test_models_lists_all_sources(datafree_command: Command) -> None:
    done = datafree_command("models")
    assert done.code == 0
    for name in ("digits_resnet8", "timm:NAME", "torchvision:NAME", "pytorchcv:NAME", "FILE.pt2"):
        assert name in done.out


def test_version(datafree_command: Command) -> None:
    assert datafree_command("--version") == Done(0, f"{datafree.__version__}\n", "")


def test_help_names_all_commands(datafree_command: Command) -> None:
    done = datafree_command("--help")
    assert done.code == 0
    names = ("quantize", "synthesize", "evaluate", "export", "methods", "models", "demo")
    for name in names:
        assert name in done.out
        assert datafree_command(name, "--help").code == 0


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
    assert (after.seed, after.calibration.name) == (1, "mse")
    assert after.synthesis.options == {"iterations": 2}
    assert after.scheme == before.scheme
    assert after.images == before.images == 4


@pytest.mark.usefixtures("no_export")
def test_an_existing_run_needs_force(datafree_command: Command) -> None:
    arguments = ("quantize", "digits_resnet8", *QUICK)
    assert datafree_command(*arguments).code == 0
    refused(datafree_command(*arguments), "run exists", "--force")
    assert datafree_command(*arguments, "--force").code == 0


@pytest.mark.usefixtures("no_export", "material")
def test_after_a_mistake_the_corrected_command_works(datafree_command: Command) -> None:
    wrong = (*QUICK, "--calibrator", "minmx")
    refused(datafree_command("quantize", "digits_resnet8", *wrong), "minmax")
    assert datafree_command("quantize", "digits_resnet8", *QUICK).code == 0


@pytest.mark.usefixtures("no_export", "material")
def test_a_network_of_the_user_with_weights(datafree_command: Command, tmp_path: Path) -> None:
    save_file(digits_resnet8().state_dict(), tmp_path / "own.safetensors")
    own = ("digits_resnet8", "--weights", "own.safetensors", *QUICK, "--output", "a")
    assert datafree_command("quantize", *own).code == 0
    plain = ("net.py:net", *INPUT, *QUICK, "--method", "noise", "-o", "std=1.0")
    done = datafree_command("quantize", *plain[:-2], "--output", "b")
    refused(done, "iterations")  # an option of zeroq, not of noise
    bare = ("net.py:net", *INPUT, "--method", "noise", "--images", "4", "--holdout", "2")
    assert datafree_command("quantize", *bare, "--output", "b").code == 0


def test_synthesize_writes_images_and_picture(datafree_command: Command, tmp_path: Path) -> None:
    arguments = ("synthesize", "digits_resnet8", "--method", "noise", "--images", "3")
    done = datafree_command(*arguments)
    assert done.code == 0, done.err
    made = datafree.SyntheticSet.load(tmp_path / "images.safetensors")
    assert len(made) == 3
    assert made.digest()[:16] in done.out
    assert (tmp_path / "images.png").is_file()
    refused(datafree_command(*arguments), "exists", "--force")


def test_an_interrupt_says_that_the_run_goes_on(
    datafree_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "_evaluate", interrupt)
    done = datafree_command("quantize", "digits_resnet8", *QUICK)
    assert done.code == 130
    assert "goes on where it stopped" in done.err


@pytest.mark.e2e
def test_quantize_evaluate_and_export_from_outside(tmp_path: Path) -> None:
    def call(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", "from datafree.cli import main; main()", *arguments],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    pixels, labels = load_digits_test()
    np.savez(tmp_path / "digits.npz", images=pixels, labels=labels)
    shown = call("quantize", "digits_resnet8", *QUICK, "--data", "digits.npz")
    assert "top-1 on 360 images" in shown
    assert (tmp_path / "run" / "student.onnx").is_file()
    shown = call("evaluate", "run", "--onnx")
    assert "student.onnx" in shown
    assert "identical predictions" in call("export", "run", "--output", "copy.onnx")


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
    assert saved.allocation is not None
    assert saved.allocation.bits == (2, 4, 8)
    assert saved.scheme.weight_range == "mse"
    # A budget takes the place of the average; the bits to choose from stay.
    again = datafree_command(
        "quantize", "--config", "run/config.yaml", "--budget", "30kB", "--output", "again"
    )
    assert again.code == 0, again.err
    assert "for 30kB" in again.out
    changed = load_config(Path("again/config.yaml")).allocation
    assert changed is not None
    assert (changed.average_bits, changed.budget, changed.bits) == (None, "30kB", (2, 4, 8))


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
    assert config.reconstruction is not None
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
        "--bits", "W3A8", "--per-tensor", "--equalize", "--bias-correction",
        "empirical", "--output", "low",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "equalization, empirical bias correction" in done.out
    assert "per tensor" in done.out
    config = load_config(Path("low/config.yaml"))
    assert config.equalize and config.bias_correction == "empirical"
    loaded = load_run(Path("low"))
    x = torch.randn(4, 3, 8, 8)
    program = torch.export.load("low/student.pt2").module()
    torch.testing.assert_close(loaded.student(x), program(x), rtol=1e-4, atol=1e-5)
    assert loaded.student.get_submodule("3").bias is not None


def test_from_network_to_integer_model_without_any_image(datafree_command: Command) -> None:
    """What DFQ does: equalization, absorption, analytic correction, ranges from batch norms."""
    done = datafree_command(
        "quantize", "digits_resnet8", "--per-tensor", "--equalize", "--absorb-biases",
        "--split-outliers", "0.02", "--bias-correction", "analytic", "--calibrator",
        "bn_statistics", "--output", "dfq",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "outlier splitting (0.02), analytic bias correction" in done.out
    assert not Path("dfq/images.safetensors").exists()
    assert not Path("dfq/grid.png").exists()
    metrics = json.loads(Path("dfq/metrics.json").read_text())
    assert metrics["results"]["onnx"]["parity"]["mismatches"] == 0
    assert metrics["results"]["bias_not_corrected"] == ["stem.0"]
    assert "held_out" not in metrics["results"]
    digits, labels = load_digits_test()
    teacher = load_run(Path("dfq"))
    scaled = torch.from_numpy(digits).permute(0, 3, 1, 2) / 255
    x = (scaled - teacher.spec.mean[0]) / teacher.spec.std[0]
    program = torch.export.load("dfq/student.pt2").module()
    torch.testing.assert_close(teacher.student(x[:9]), program(x[:9]), rtol=1e-4, atol=1e-5)
    right = teacher.student(x).argmax(1) == torch.from_numpy(labels)
    assert float(right.float().mean()) > 0.98
    again = datafree_command("export", "dfq", "--output", "again.onnx")
    assert again.code == 0, again.err
