"""Branches of the package that tests take, of as many runs of tests as were made into one folder.

    PYTHONPATH=src python scripts/branches.py /tmp/branches -- -n 2 --dist loadfile -m "not gpu"
    python scripts/branches.py /tmp/branches

Everything after ``--`` goes to pytest; what it and the processes it starts take is added to what is
in the folder. A run of part of the tests gives a lower bound, and more runs raise it. Without
``--`` nothing runs, and what the folder holds is counted again. Under the tracer of Python 3.11
tests take about twice their time.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "benchmarks" / "results" / "branches.json"
# A file for every process: workers of pytest, and commands that tests start. os._exit ends some.
_SETTINGS = """[run]
branch = true
source_pkgs = datafree
parallel = true
patch = _exit
data_file = {folder}/.coverage
[report]
exclude_also =
    if TYPE_CHECKING:
    @overload
    raise NotImplementedError
"""


def main() -> None:
    """Run tests if there are any to run, and record the union of what is in the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("tests", nargs="*", help="arguments of pytest")
    asked = parser.parse_args()
    folder = asked.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    settings, runs = folder / "settings", folder / "runs.txt"
    settings.write_text(_SETTINGS.format(folder=folder), encoding="utf-8")
    if asked.tests:
        given = {**os.environ, "COVERAGE_PROCESS_START": str(settings)}
        subprocess.run([sys.executable, "-m", "pytest", *asked.tests], cwd=ROOT, env=given)
        with runs.open("a", encoding="utf-8") as file:
            file.write(shlex.join(asked.tests) + "\n")
    record = counted(told(folder, settings))
    record["runs"] = runs.read_text(encoding="utf-8").splitlines()
    asked_git = ["git", "rev-parse", "--short", "HEAD"]
    record["commit"] = subprocess.check_output(asked_git, cwd=ROOT, text=True).strip()
    RECORD.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record["all"]))


def told(folder: Path, settings: Path) -> dict[str, Any]:
    """Coverage's own report of all data in `folder`, by file."""
    call = [sys.executable, "-m", "coverage"]
    rest = [f"--rcfile={settings}"]
    if list(folder.glob(".coverage.*")):
        subprocess.run([*call, "combine", "--append", "-q", *rest], cwd=ROOT, check=True)
    report = folder / "report.json"
    subprocess.run([*call, "json", "-q", "-o", str(report), *rest], cwd=ROOT, check=True)
    return json.loads(report.read_text(encoding="utf-8"))["files"]


def counted(files: dict[str, Any]) -> dict[str, Any]:
    """Branches and statements by folder of the package; modules beside the folders are one."""
    parts: dict[str, dict[str, int]] = {}
    for name, file in files.items():
        below = Path(name).parts[Path(name).parts.index("datafree") + 1 :]
        for part in (below[0] if len(below) > 1 else ".", "all"):
            own = parts.setdefault(part, dict.fromkeys(("branches", "taken", "lines", "run"), 0))
            summary = file["summary"]
            own["branches"] += summary["num_branches"]
            own["taken"] += summary["covered_branches"]
            own["lines"] += summary["num_statements"]
            own["run"] += summary["covered_lines"]
    return {"all": parts.pop("all"), "parts": dict(sorted(parts.items()))}


if __name__ == "__main__":
    main()
