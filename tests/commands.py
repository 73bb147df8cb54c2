"""The command line in this process, for tests: fixtures, quick options, what mistakes look like."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

import datafree
from datafree.cli import console
from datafree.cli.app import main
from datafree.runs import pipeline

QUICK = (
    *("--method", "zeroq", "-o", "iterations=3", "--images", "4", "--calibrator", "minmax"),
    *("--holdout", "2", "--device", "cpu", "--no-latency"),
)
FACTORY = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))

def broken():
    model = net()
    model[0].weight.data[0] = float("nan")
    return model
"""
INPUT = ("--input-shape", "3,8,8", "--mean", "0,0,0", "--std", "1,1,1")


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture
def datafree_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """The command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    # Made anew: the ones of the command line took their width when they were made.
    monkeypatch.setattr(console, "out", Console(width=200))
    monkeypatch.setattr(console, "err", Console(width=200, stderr=True))

    def call(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["datafree", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
        said = capsys.readouterr()
        return Done(code, said.out, said.err)

    return call


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs leave out ONNX and .pt2, which take seconds."""
    original = pipeline.run

    def quick(config: datafree.RunConfig, **kwargs: object) -> datafree.Result:
        return original(config.model_copy(update={"export": False}), **kwargs)  # pyright: ignore

    monkeypatch.setattr(pipeline, "run", quick)


def refused(done: Done, *parts: str) -> None:
    """One line on standard error that holds all `parts`, and exit code 2."""
    assert done.code == 2, done
    lines = done.err.strip().splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]
    assert "Traceback" not in done.err


@pytest.fixture
def material(tmp_path: Path) -> None:
    """Files that mistakes are made with."""
    (tmp_path / "net.py").write_text(FACTORY, encoding="utf-8")
    for name in ("bad.safetensors", "bad.pt2"):
        (tmp_path / name).write_bytes(b"not what the name says")
    save_file({"weight": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    pixels = np.zeros((2, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "labels.npz", images=pixels, labels=np.array([0, 10]))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").touch()
