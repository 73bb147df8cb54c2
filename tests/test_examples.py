"""Examples run as they are written, where their runtime is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from commands import Command
from conftest import ROOT
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
