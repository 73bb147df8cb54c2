"""Every run has its page, and a page never costs a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datafree.config import RunConfig, build
from datafree.errors import ReportWarning
from datafree.images import SyntheticSet
from datafree.models import load_teacher
from datafree.runs import reporting
from datafree.runs.folder import REPORT
from datafree.runs.pipeline import Result, run
from datafree.runs.reporting import cited
from datafree.zoo import load_digits_test

pytestmark = pytest.mark.integration

QUICK: dict[str, Any] = {
    "model": "digits_resnet8", "bits": "W4A8", "method": "noise", "images": 4,
    "calibrator": "minmax", "holdout": 2, "export": False, "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pixels, labels = load_digits_test()
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(path, images=pixels[:40], labels=labels[:40])
    return path


def quick(folder: Path | None, **changes: Any) -> Result:
    return run(build(RunConfig, {**QUICK, **changes}, "test"), folder=folder)


def test_a_run_with_labelled_images_compares_with_them(tmp_path: Path, digits: Path) -> None:
    result = quick(tmp_path / "run", data=digits, policy="first_last_8")
    text = (tmp_path / "run" / REPORT).read_text(encoding="utf-8")
    assert "real images" in text
    assert f"{result.metrics['top1']['student']:.2f}" in text
    assert "noise</code>, image method" in text
    assert result.seconds["report"] > 0
    record = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert REPORT not in record["hashes"], "it may be written again"
    assert "report" in record["seconds"]


def test_a_run_without_a_page(tmp_path: Path) -> None:
    result = quick(tmp_path / "run", report=False)
    assert not (tmp_path / "run" / REPORT).exists()
    assert "report" not in result.seconds


def test_a_page_that_fails_is_a_warning_and_the_run_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: object) -> str:
        raise ValueError("no ink")

    monkeypatch.setattr(reporting, "render", fails)
    with pytest.warns(ReportWarning, match=r"no report.html .*ValueError: no ink.*datafree report"):
        quick(tmp_path / "run")
    assert (tmp_path / "run" / "metrics.json").exists()
    assert not (tmp_path / "run" / REPORT).exists()


def test_a_run_without_a_folder_writes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "render", pytest.fail)
    quick(None)


def test_the_page_of_an_earlier_run_goes_with_it(tmp_path: Path) -> None:
    quick(tmp_path / "run")
    bare = {**QUICK, "report": False}
    run(build(RunConfig, bare, "test"), folder=tmp_path / "run", force=True)
    assert not (tmp_path / "run" / REPORT).exists()


def test_mixed_precision_shows_its_frontier(tmp_path: Path) -> None:
    quick(tmp_path / "run", average_bits=4, candidate_bits=(2, 8))
    text = (tmp_path / "run" / REPORT).read_text(encoding="utf-8")
    assert 'data-plot="frontier"' in text
    assert "Cai et al. (2020), ZeroQ" in text


@pytest.mark.parametrize("training", ["gdfq", "dfqf"])
def test_a_trained_student_has_a_page(tmp_path: Path, training: str) -> None:
    options = {"iterations": 2, "warmup": 2, "batch_size": 4}
    quick(tmp_path / "run", method="dsg", training=training, training_options=options, report=True)
    text = (tmp_path / "run" / REPORT).read_text(encoding="utf-8")
    assert f"{training}</code>, training" in text
    assert "dsg</code>" not in text, "its generator made the images"


def test_methods_are_cited_where_they_were_used() -> None:
    changes = {"method": "dsg", "reconstruction": "qdrop", "equalize": True, "bits": "W4A4"}
    config = build(RunConfig, {**QUICK, **changes}, "test")
    spec = load_teacher(config.teacher).spec
    made = SyntheticSet(torch.zeros(1, *spec.shape), spec, metadata={"method": "dsg"})
    found = {one.name: one for one in cited(config, made)}
    assert set(found) == {"dsg", "minmax", "qdrop", "equalize"}
    assert "Diversifying Sample Generation" in found["dsg"].citation
    assert "ICCV" in found["equalize"].citation
    given = replace(made, metadata={"method": "real"})
    assert "dsg" not in {one.name for one in cited(config, given)}
