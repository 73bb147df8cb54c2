"""Carry out the notebooks in examples/ and keep what they print: `python scripts/notebooks.py`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"


def carried_out(path: Path, folder: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of its cells, run in `folder`; raises what a cell raises."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(folder)}}
    ).execute()  # fmt: skip
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, which differ in every run
    return notebook


def main(names: list[str]) -> None:
    """Write the notebooks called so anew; all of them where none is named."""
    for path in sorted(EXAMPLES.glob("*.ipynb")):
        if not names or path.stem in names:
            with tempfile.TemporaryDirectory() as folder:
                nbformat.write(carried_out(path, Path(folder)), path)
            print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
