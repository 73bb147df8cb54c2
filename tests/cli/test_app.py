"""The command line: what its commands list, print and write."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import datafree
from commands import QUICK, Command, Done, refused
from datafree.config import load_config
from datafree.runs import pipeline
from datafree.zoo import load_digits_test


def test_recipes_are_listed_with_the_options_they_stand_for(datafree_command: Command) -> None:
    done = datafree_command("recipes")
    assert done.code == 0
    for text in ("dfq", "fast", "balanced", "best", "trained", "bn_statistics", "--equalize"):
        assert text in done.out


def test_methods_lists_all(datafree_command: Command) -> None:
    done = datafree_command("methods")
    assert done.code == 0
    names = ("noise", "zeroq", "dsg", "minmax", "ema", "percentile", "mse", "datafree methods NAME")
    for name in names:
        assert name in done.out


def test_models_lists_all_sources(datafree_command: Command) -> None:
    done = datafree_command("models")
    assert done.code == 0
    for name in (
        "digits_resnet8",
        "timm:NAME",
        "torchvision:NAME",
        "pytorchcv:NAME",
        "FILE.pt2",
        "FILE.onnx",
    ):
        assert name in done.out


def test_version(datafree_command: Command) -> None:
    assert datafree_command("--version") == Done(0, f"{datafree.__version__}\n", "")


def test_help_names_all_commands(datafree_command: Command) -> None:
    done = datafree_command("--help")
    assert done.code == 0
    names = (
        "quantize", "synthesize", "evaluate", "export", "benchmark", "report", "methods", "models",
        "demo",
    )  # fmt: skip
    for name in names:
        assert name in done.out
        assert datafree_command(name, "--help").code == 0


def test_synthesize_writes_images_and_picture(datafree_command: Command, tmp_path: Path) -> None:
    arguments = ("synthesize", "digits_resnet8", "--method", "noise", "--images", "3")
    done = datafree_command(*arguments)
    assert done.code == 0, done.err
    made = datafree.SyntheticSet.load(tmp_path / "images.safetensors")
    assert len(made) == 3
    assert made.digest()[:16] in done.out
    assert (tmp_path / "images.png").is_file()
    refused(datafree_command(*arguments), "exists", "--force")
    assert "excite" in made.metadata
    more = ("--no-excite", "--output", "plain.npz")
    assert datafree_command(*arguments, *more).code == 0
    assert (tmp_path / "plain.npz").is_file()
    done = datafree_command(
        "quantize", "digits_resnet8", "--images", "images.safetensors", "--holdout", "0", "--bits",
        "W8A8", "--output", "run",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert load_config(tmp_path / "run" / "config.yaml").images == 3


def test_an_interrupt_says_that_the_run_goes_on(
    datafree_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "evaluated", interrupt)
    done = datafree_command("quantize", "digits_resnet8", *QUICK)
    assert done.code == 130
    assert "goes on where it stopped" in done.err


@pytest.mark.e2e
def test_quantize_evaluate_and_export_from_outside(tmp_path: Path) -> None:
    def call(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", "from datafree.cli.app import main; main()", *arguments],
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


@pytest.mark.e2e
def test_a_report_is_written_again_and_mistakes_are_told(
    datafree_command: Command, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = datafree_command(
        "quantize", "digits_resnet8", *QUICK, "--no-export", "--output", str(run)
    )
    assert done.code == 0, done.err
    (run / "report.html").unlink()
    done = datafree_command("report", str(run))
    assert done.code == 0, done.err
    assert (run / "report.html").stat().st_size > 100_000
    assert "report.html" in done.out
    done = datafree_command("report", str(run), "--images", str(tmp_path / "none"))
    assert done.code == 2
    assert "there is no" in done.err
    assert datafree_command("report", str(tmp_path / "none")).code == 2
