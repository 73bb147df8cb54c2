"""Training in bfloat16 and by several processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from datafree.calibrators.mse import MSE
from datafree.config import Scheme
from datafree.errors import ConfigError
from datafree.graph.fold import fold_batch_norms
from datafree.training import Task, train
from datafree.training._team import AcceleratedTeam, Team, gather_team
from datafree.training.dfqf import DFQF
from networks import SPEC, captured, images

pytestmark = pytest.mark.integration

METHOD = DFQF(
    warmup=3, iterations=4, batch_size=8, calibration_images=16, holdout=16, checks=2, latent=10,
    width=8,
)  # fmt: skip
PART = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from datafree.training._team import AcceleratedTeam
team = AcceleratedTeam(cpu=True, precision="fp32")
assert team.size == 2
own = [torch.full((2, 3), 1.0 + team.rank), None, torch.tensor(4.0 * team.rank)]
mean = team.mean(own)
assert torch.equal(mean[0], torch.full((2, 3), 1.5)) and mean[1] is None and mean[2] == 2.0
assert team.first_says(10.0 + team.rank) == 10.0
shared = [torch.tensor([team.rank, 7]), torch.tensor(float(team.rank))]
team.share(shared)
assert shared[0].tolist() == [0, 7] and shared[1] == 0
team.wait()
torch.distributed.destroy_process_group()
"""


def task() -> Task:
    graph = captured("Tiny")
    return Task(graph, fold_batch_norms(graph), SPEC, Scheme(bits="W3A4"), MSE())


def test_alone_nothing_is_agreed_on() -> None:
    team = gather_team(torch.device("cpu"), "fp32")
    assert type(team) is Team and (team.rank, team.size) == (0, 1)
    gradients = [torch.ones(2), None]
    assert team.mean(gradients) is gradients
    assert team.first_says(3.0) == 3.0


def test_bfloat16_learns_nearly_the_same() -> None:
    exact = train(METHOD, task())
    mixed = train(METHOD, task(), team=AcceleratedTeam(cpu=True, precision="bf16"))
    assert all(p.dtype == torch.float32 for p in mixed.student.parameters())
    x = images(16, 1)
    difference = (exact.student(x) - mixed.student(x)).abs().mean()
    assert 0 < difference < 0.5 * exact.student(x).std()


def test_too_few_images_for_every_process_are_refused() -> None:
    team = Team()
    team.size = 5
    with pytest.raises(ConfigError, match="leave 5 processes less than two images each"):
        train(METHOD, task(), team=team)


def test_without_accelerate_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ConfigError, match=r"pip install 'datafree\[train\]'"):
        gather_team(torch.device("cpu"), "bf16")


def together(folder: Path, *command: str) -> list[subprocess.CompletedProcess[str]]:
    """Two processes on this machine, as a launcher starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {
        **os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    done: list[subprocess.CompletedProcess[str]] = []
    for process in started:
        out, err = process.communicate(timeout=300)
        done.append(subprocess.CompletedProcess(command, process.returncode, out, err))
    return done


@pytest.mark.e2e
def test_two_processes_agree(tmp_path: Path) -> None:
    for done in together(tmp_path, "-c", PART, str(Path.cwd() / "src")):
        assert done.returncode == 0, done.stderr


@pytest.mark.e2e
def test_two_processes_train_one_student_and_the_first_writes_it(tmp_path: Path) -> None:
    chosen = METHOD.model_dump(exclude_defaults=True)
    options = [f"--training-option={name}={value}" for name, value in chosen.items()]
    command = (
        "-m", "datafree", "quantize", "digits_resnet8", "--bits", "W3A3", "--training", "dfqf",
        *options, "--images", "4", "--device", "cpu", "--reconstruction", "adaround",
        "--reconstruction-option", "iterations=5",
    )  # fmt: skip
    first, second = together(tmp_path, *command)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert "fine-tuning" in first.stdout and second.stdout == ""
    results = json.loads((tmp_path / "run" / "metrics.json").read_text())["results"]
    assert results["training"]["fine-tuning"]["steps"] == 4
    assert sum(unit["rounded"] for unit in results["reconstruction"]) > 70_000
    assert results["onnx"]["parity"]["mismatches"] == 0
    again = together(tmp_path, *command, "--output", "again")
    assert all(done.returncode == 0 for done in again)
    one, two = (
        json.loads((tmp_path / f / "metrics.json").read_text())["hashes"]["student.safetensors"]
        for f in ("run", "again")
    )
    assert one == two
