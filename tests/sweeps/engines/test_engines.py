"""Engines: a cell whose process dies again and again, and a Ray that is not there."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from commands import Command, refused
from killed_sweeps import command, environment

pytestmark = pytest.mark.integration

BASE = {
    "images": 4, "holdout": 4, "isolate": False, "latency": False, "report": False, "export": False,
    "method": "noise", "calibrator": "minmax", "input_shape": [1, 16, 16],
}  # fmt: skip
DIES = """import os
import time

def net():
    os.closerange(0, 99)  # whoever waits for an answer hears that there is none
    time.sleep(1)
    os._exit(7)
"""


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep with a network that ends whatever process loads it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dies.py").write_text(DIES, encoding="utf-8")
    axes = {"model": ["dies.py:net", "digits_resnet8"]}
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump({"base": BASE, "axes": axes}), encoding="utf-8")
    return path


def outcome(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("sweep", "plan.yaml", "--trust-code", "--output", "out", "--retries", "1", *words),
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("words", [("--workers", "2"), ("--engine", "ray", "--workers", "2")])
def test_a_cell_whose_process_always_dies_is_given_up(plan: Path, words: tuple[str, ...]) -> None:
    if "ray" in words and importlib.util.find_spec("ray") is None:
        pytest.skip("needs the extra ray")
    done = outcome(*words)
    assert done.returncode == 4, done.stdout + done.stderr
    assert "1 of 2 cells are finished" in done.stdout
    assert "dies.py:net" in done.stderr.splitlines()[-1]
    assert "ray" in words or "exit code 7" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    log = next(plan.parent.glob("out/log/dies*.jsonl")).read_text(encoding="utf-8")
    assert log.count('"started"') == 2  # once, and once again


def test_ray_that_is_not_there_is_one_line(
    plan: Path, datafree_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ("sweep", str(plan), "--trust-code", "--engine", "ray")
    refused(datafree_command(*words), "pip install 'datafree[ray]'")


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray")
def test_a_cluster_that_is_not_there_is_one_line(plan: Path) -> None:
    assert plan.exists()
    done = outcome("--engine", "ray", "--address", "127.0.0.1:1")
    assert done.returncode == 2
    assert "no Ray cluster at 127.0.0.1:1" in done.stderr.splitlines()[-1]


def test_importing_the_package_and_its_sweeps_imports_no_ray() -> None:
    code = (
        "import sys, datafree, datafree.api, datafree.sweeps.sweeping; print('ray' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
