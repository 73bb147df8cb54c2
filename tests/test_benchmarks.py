"""Benchmark scripts load and explain themselves; what they measure is not tested."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from conftest import ROOT

FOLDER = ROOT / "benchmarks"
SCRIPTS = sorted(p for p in FOLDER.glob("*.py") if "__main__" in p.read_text(encoding="utf-8"))

pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="no benchmarks in this copy")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_explains_itself(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    monkeypatch.syspath_prepend(str(FOLDER))
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(script), run_name="__main__")
    assert stopped.value.code == 0
    assert "--" in capsys.readouterr().out


def test_the_readme_names_only_scripts_there_are() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    named = {word.split("`")[0].strip() for word in text.split("python benchmarks/")[1:]}
    missing = {name.split()[0] for name in named if not (FOLDER / name.split()[0]).exists()}
    assert not missing
