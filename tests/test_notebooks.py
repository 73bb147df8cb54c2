"""Notebooks are carried out, cell by cell, in an empty folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest

from conftest import ROOT
from datafree.user_code import module_at

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def printed(notebook: Any) -> str:
    """All that its cells printed."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    return "".join(out["text"] for out in outputs if out["output_type"] == "stream")


def test_there_are_two() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["images", "quantize"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_people_see_what_it_printed(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert "%" in printed(notebook)
    assert not any(cell.source.startswith("!") for cell in notebook.cells)


@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore")  # of Jupyter's own processes
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    scripts: Any = module_at(str(ROOT / "scripts" / "notebooks.py"))
    assert "%" in printed(scripts.carried_out(path, tmp_path))
