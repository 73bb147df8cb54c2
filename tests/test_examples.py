"""Examples run as they are written, where their runtime is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT
from datafree.user_code import module_at

pytestmark = pytest.mark.e2e


def example(name: str) -> Any:
    return module_at(str(ROOT / "examples" / f"for_{name}.py"))


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_an_example_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60


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


@pytest.mark.parametrize(
    ("name", "package"), [("executorch", "executorch"), ("litert", "litert_torch")]
)
def test_phones(name: str, package: str, tmp_path: Path) -> None:
    pytest.importorskip(package)
    assert example(name).main(tmp_path) > 97
