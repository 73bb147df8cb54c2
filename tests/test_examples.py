"""Examples run as they are written, where their runtime is installed."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands import Command
from conftest import ROOT
from datafree.cli.app import app
from datafree.cli.options import given_fields
from datafree.config import build
from datafree.sweeps.options import SweepOptions
from datafree.sweeps.plan import load_plan
from datafree.user_code import module_at

pytestmark = pytest.mark.e2e


def example(name: str) -> Any:
    return module_at(str(ROOT / "examples" / f"for_{name}.py"))


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_an_example_is_short(path: Path) -> None:
    longest = 180 if path.stem == "for_detectors" else 60  # it trains what it quantizes
    assert len(path.read_text(encoding="utf-8").splitlines()) <= longest


def test_no_example_hides_the_package_it_is_for() -> None:
    """Run as a script, a file stands in front of a package of the same name."""
    assert all(path.name.startswith("for_") for path in (ROOT / "examples").glob("*.py"))


def test_tensorrt(tmp_path: Path) -> None:
    assert example("tensorrt").main(tmp_path) == []
    assert (tmp_path / "student.onnx").is_file()


def test_qnn(tmp_path: Path) -> None:
    counts = example("qnn").main(tmp_path)
    assert counts["param_encodings"] >= 8 and counts["activation_encodings"] >= 8
    assert (tmp_path / "student.onnx").is_file() and (tmp_path / "student.encodings").is_file()


def test_detectors(tmp_path: Path, datafree_command: Command) -> None:
    """mAP falls when bits fall, and files reach what their students reach."""
    found = example("detectors").main(tmp_path)
    means = {bits: reached["student"] for bits, reached in found.items()}
    assert found["W8A8"]["teacher"] > 50
    assert means["W8A8"] > means["W4A8"] > means["W4A4"] > 5
    for reached in found.values():
        assert reached["onnx"] == pytest.approx(reached["student"], abs=0.5)
    file = ROOT / "examples" / "for_detectors.py"
    done = datafree_command(
        "quantize", f"{file}:Detector", "--input-shape", "1,48,48", "--mean", "0", "--std", "1",
        "--weights-file", "weights.safetensors", "--data", "scenes.json",
        "--decode", f"{file}:boxes", "--bits", "W4A8", "--images", "96",
        "--no-latency", "--output", "again",
    )  # fmt: skip
    assert done.code == 0, done.err
    told = json.loads((tmp_path / "again" / "metrics.json").read_text())["results"]["map"]
    assert told["student"] == pytest.approx(means["W4A8"], abs=0.01)
    shown = datafree_command("evaluate", "again", "--onnx", "--trust-code")
    assert shown.code == 0 and "mAP %" in shown.out and f"{told['student']:.2f}" in shown.out


@pytest.mark.parametrize(
    ("name", "package"), [("executorch", "executorch"), ("litert", "litert_torch")]
)
def test_phones(name: str, package: str, tmp_path: Path) -> None:
    pytest.importorskip(package)
    assert example(name).main(tmp_path) > 97


def test_sweeps_are_what_the_commands_take() -> None:
    """24 cells, which parts on a Slurm array and in indexed pods share out."""
    assert len(load_plan(ROOT / "examples/sweep.yaml").runs("sweep")) == 24
    slurm = (ROOT / "examples/sweep_slurm.sh").read_text(encoding="utf-8")
    pods = yaml.safe_load((ROOT / "examples/sweep_kubernetes.yaml").read_text(encoding="utf-8"))
    spec = pods["spec"]
    container = spec["template"]["spec"]["containers"][0]
    assert spec["completionMode"] == "Indexed"
    variables = {
        "$SLURM_ARRAY_TASK_ID": "7", "$SLURM_ARRAY_TASK_COUNT": "8", "$SLURM_CPUS_PER_TASK": "4",
        "$JOB_COMPLETION_INDEX": str(spec["completions"] - 1), "$HOME": "/home/me",
    }  # fmt: skip
    found: list[Any] = []
    for text in (slurm.replace("\\\n", " "), container["args"][0]):
        line = next(
            line for line in text.splitlines() if "datafree sweep" in line and "#" not in line
        )
        for name, value in variables.items():
            line = line.replace(name, value)
        words = shlex.split(line.partition("datafree sweep")[2])
        found.append(app.commands["sweep"].make_context("sweep", words).params)
    for given in found:
        options = build(SweepOptions, given_fields({"shard": given["shard"]}), "options")
        assert options.shard == (7, 8)
        assert (int(given["workers"]), Path(given["output"]).name) == (4, "digits")
