"""A run of the built-in network for the tests of reports: quick, and with everything in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from datafree.config import RunConfig
from datafree.graph.outputs import together
from datafree.report import Cited, Report, Source, collect
from datafree.runs.pipeline import Result, run

CONFIG = RunConfig(
    model="digits_resnet8",
    bits="W4A4",
    method="noise",
    images=8,
    calibrator="minmax",
    holdout=4,
    latency=False,
    report=False,
    device="cpu",
)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run(CONFIG, folder=tmp_path_factory.mktemp("reports") / "run")


@pytest.fixture(scope="session")
def folder(finished: Result) -> Path:
    assert finished.folder is not None
    return finished.folder


@pytest.fixture(scope="session")
def source(finished: Result) -> Source:
    return Source(
        name="run",
        asked=CONFIG,
        config=finished.config,
        spec=finished.spec,
        teacher=together(finished.teacher),
        student=together(finished.student),
        images=finished.images,
        metrics=finished.metrics,
        seconds=finished.seconds,
        methods=(Cited("noise", "image method", "Draws noise.", "Nobody (2020), Noise"),),
    )


@pytest.fixture(scope="session")
def report(source: Source) -> Report:
    return collect(source)
