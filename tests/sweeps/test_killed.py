"""Workers and drivers that are killed: the same results as one process, nothing done twice."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import killed_sweeps

CELLS = 6

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plan, and `one`: its cells as one process computes them."""
    place = tmp_path_factory.mktemp("sweeps")
    text = killed_sweeps.plan(CELLS, export=False)
    (place / "plan.yaml").write_text(text, encoding="utf-8")
    killed_sweeps.carry_out(place, "sweep", "plan.yaml", "--workers", "1", "--output", "one")
    assert len(killed_sweeps.digests(place / "one")) == CELLS
    return place


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray")
def test_two_workers_and_the_driver_of_a_ray_cluster_are_killed(place: Path) -> None:
    told = killed_sweeps.by_ray(place, place / "ray", CELLS)
    assert killed_sweeps.digests(place / "ray") == killed_sweeps.digests(place / "one")
    assert told["starts"] >= CELLS + 2  # both were at work


def test_a_process_and_the_driver_of_a_sweep_here_are_killed(place: Path) -> None:
    told = killed_sweeps.here(place, place / "here", CELLS)
    assert killed_sweeps.digests(place / "here") == killed_sweeps.digests(place / "one")
    assert told["starts"] > CELLS


def test_a_part_is_killed(place: Path) -> None:
    killed_sweeps.by_parts(place, place / "parts", CELLS)
    merged = killed_sweeps.digests(place / "parts/whole")
    assert merged == killed_sweeps.digests(place / "one")
