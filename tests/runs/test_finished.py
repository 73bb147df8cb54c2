"""Finished runs: loaded, measured and exported once more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from datafree.config import RunConfig
from datafree.errors import ConfigError, DataError, ModelError, OutputExistsError, UnknownNameError
from datafree.models import from_module
from datafree.registry import available
from datafree.runs.finished import evaluate_run, export_run, load_run
from datafree.runs.pipeline import Result, run
from datafree.zoo import load_digits_test
from networks import SPEC, build

pytestmark = pytest.mark.integration

CONFIG = RunConfig(
    model="digits_resnet8",
    bits="W4A8",
    method="noise",
    images=4,
    calibrator="minmax",
    holdout=0,
    export=False,
    latency=False,
    device="cpu",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run(CONFIG, folder=tmp_path_factory.mktemp("runs") / "made")


@pytest.fixture(scope="module")
def folder(made: Result) -> Path:
    assert made.folder is not None
    return made.folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pixels, labels = load_digits_test()
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(path, images=pixels, labels=labels)
    return path


def test_a_loaded_run_computes_the_same_bits(made: Result, folder: Path) -> None:
    loaded = load_run(folder)
    with torch.no_grad():
        assert torch.equal(loaded.student(made.images.images), made.student(made.images.images))
        assert torch.equal(loaded.teacher(made.images.images), made.teacher(made.images.images))
    assert loaded.images.digest() == made.images.digest()
    assert loaded.config == CONFIG
    assert loaded.spec == made.spec
    assert loaded.folder == folder


@pytest.mark.parametrize("calibrator", available("datafree.calibrators"))
def test_ranges_of_every_calibrator_come_back(tmp_path: Path, calibrator: str) -> None:
    config = CONFIG.model_copy(update={"calibrator": calibrator})
    result = run(config, folder=tmp_path)
    with torch.no_grad():
        assert torch.equal(
            load_run(tmp_path).student(result.images.images), result.student(result.images.images)
        )


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        load_run(tmp_path)


@pytest.mark.parametrize("missing", ["metrics.json", "student.safetensors"])
def test_an_unfinished_run_is_refused(tmp_path: Path, missing: str) -> None:
    run(CONFIG, folder=tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(ConfigError, match="holds no finished"):
        load_run(tmp_path)


def test_a_teacher_that_changed_is_refused(tmp_path: Path) -> None:
    from datafree.zoo import digits_resnet8

    weights = tmp_path / "weights.safetensors"
    save_file(digits_resnet8().state_dict(), weights)
    run(CONFIG.model_copy(update={"weights_file": weights}), folder=tmp_path / "run")
    load_run(tmp_path / "run")
    save_file({k: v + 1 for k, v in digits_resnet8().state_dict().items()}, weights)
    with pytest.raises(ConfigError, match="has changed"):
        load_run(tmp_path / "run")


def test_a_teacher_from_memory_cannot_come_back(tmp_path: Path) -> None:
    teacher = from_module(build("Tiny"), input_shape=SPEC.shape)
    changes = {"model": "<Tiny in memory>", "input_shape": SPEC.shape}
    run(CONFIG.model_copy(update=changes), teacher=teacher, folder=tmp_path)
    with pytest.raises((ModelError, UnknownNameError), match="in memory"):
        load_run(tmp_path)


def test_evaluate_measures_both_networks(folder: Path, digits: Path) -> None:
    config, measured = evaluate_run(folder, {"data": digits, "limit": None, "device": None})
    assert measured["test_images"] == 360
    assert list(measured["top1"]) == ["teacher", "student"]
    assert measured["top1"]["teacher"] >= 98.5
    assert measured["top1"]["student"] > 50
    assert config.data == digits
    assert config.scheme == CONFIG.scheme


def test_evaluate_takes_a_limit(folder: Path, digits: Path) -> None:
    assert evaluate_run(folder, {"data": digits, "limit": 7})[1]["test_images"] == 7


def test_evaluate_without_data_asks_for_them(folder: Path) -> None:
    with pytest.raises(DataError, match="--data"):
        evaluate_run(folder, {})


def test_evaluate_does_not_change_the_run(folder: Path, digits: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    evaluate_run(folder, {"data": digits, "limit": 3})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.e2e
def test_evaluate_runs_the_onnx_file(tmp_path: Path, digits: Path) -> None:
    run(CONFIG.model_copy(update={"export": True}), folder=tmp_path)
    top1 = evaluate_run(tmp_path, {"data": digits}, onnx=True)[1]["top1"]
    assert list(top1) == ["teacher", "student", "student.onnx"]
    assert top1["student.onnx"] == pytest.approx(top1["student"], abs=0.6)  # 2 of 360 near-ties


@pytest.mark.e2e
@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_export_writes_and_checks(folder: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"deep/student.{suffix}"
    report = export_run(folder, path)
    assert path.is_file()
    assert report["bytes"] == path.stat().st_size
    assert report["parity"]["images"] == 4
    assert report["parity"]["mismatches"] == 0
    with pytest.raises(OutputExistsError, match="--force"):
        export_run(folder, path)


@pytest.mark.parametrize("name", ["student.onx", "student"])
def test_export_refuses_unknown_suffixes(folder: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UnknownNameError, match="onnx"):
        export_run(folder, tmp_path / name)
    assert not (tmp_path / name).exists()


def test_export_refuses_unknown_weight_types(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="weight_type"):
        export_run(folder, tmp_path / "student.onnx", options={"weight_type": "int9"})
