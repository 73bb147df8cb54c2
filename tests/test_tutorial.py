"""The tutorial is followed word by word, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

PAGE = ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(
    r"^(?:`(?P<file>[\w.]+)`\n\n)?^```(?P<kind>\w+)\n(?P<body>.*?)^```", re.MULTILINE | re.DOTALL
)


def script(text: str) -> str:
    """One shell script of a page: commands as they are, files written where they are shown."""
    parts = ["set -euo pipefail", "set -m"]
    for block in BLOCK.finditer(text):
        if block["file"]:
            parts.append(f"cat > {block['file']} <<'END OF FILE'\n{block['body']}END OF FILE")
        elif block["kind"] == "sh":
            parts.append(block["body"].rstrip())
    return "\n".join(parts) + "\n"


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which the page was followed, and what was printed."""
    folder = tmp_path_factory.mktemp("empty")
    file = folder / "follow.sh"
    file.write_text(script(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    paths = (Path(sys.executable).parent, Path(os.environ["PATH"]))
    environment = os.environ | {"PATH": os.pathsep.join(map(str, paths)), "COLUMNS": "80"}
    done = subprocess.run(
        ["bash", str(file)], cwd=folder, env=environment, capture_output=True, text=True,
        check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder / "tutorial", done.stdout


@pytest.mark.e2e
def test_the_tutorial_leads_where_it_says(followed: tuple[Path, str]) -> None:
    folder, printed = followed
    assert (folder / "run" / "student.onnx").stat().st_size < 60_000
    assert (folder / "run" / "report.html").is_file()
    top1 = [float(found) for found in re.findall(r"student\s+│\s+([\d.]+)", printed)]
    assert len(top1) == 2
    assert min(top1) > 90
    sizes = [(folder / name / "student.onnx").stat().st_size for name in ("run", "larger")]
    assert sizes[0] < 0.7 * sizes[1]


@pytest.mark.e2e
def test_the_service_names_the_digit(followed: tuple[Path, str]) -> None:
    import numpy as np

    folder, printed = followed
    with np.load(folder / "test.npz") as test:
        assert printed.strip().splitlines()[-1] == str(test["labels"][0])


def test_files_and_commands_are_told_apart() -> None:
    text = (
        "`a.py`\n\n```python\nx = 1\n```\n\n```sh\npython a.py\n```\n\n```python\nnot a file\n```\n"
    )
    assert script(text).splitlines()[2:] == [
        "cat > a.py <<'END OF FILE'",
        "x = 1",
        "END OF FILE",
        "python a.py",
    ]
