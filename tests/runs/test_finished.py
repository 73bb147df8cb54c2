"""Finished runs: loaded, measured and exported once more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from datafree.config import RunConfig
from datafree.errors import ConfigError, DataError, ModelError, OutputExistsError, UnknownNameError
from datafree.models import from_module
from datafree.registry import available
from datafree.runs.finished import evaluate_run, export_run, restored
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
    loaded = restored(folder)
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
            restored(tmp_path).student(result.images.images), result.student(result.images.images)
        )


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        restored(tmp_path)


@pytest.mark.parametrize("missing", ["metrics.json", "student.safetensors"])
def test_an_unfinished_run_is_refused(tmp_path: Path, missing: str) -> None:
    run(CONFIG, folder=tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(ConfigError, match="holds no finished"):
        restored(tmp_path)


def test_a_teacher_that_changed_is_refused(tmp_path: Path) -> None:
    from datafree.zoo import digits_resnet8

    weights = tmp_path / "weights.safetensors"
    save_file(digits_resnet8().state_dict(), weights)
    run(CONFIG.model_copy(update={"weights_file": weights}), folder=tmp_path / "run")
    restored(tmp_path / "run")
    save_file({k: v + 1 for k, v in digits_resnet8().state_dict().items()}, weights)
    with pytest.raises(ConfigError, match="has changed"):
        restored(tmp_path / "run")


def in_memory(folder: Path, **changes: Any) -> Result:
    teacher = from_module(build("Tiny"), input_shape=SPEC.shape)
    told = {"model": "<Tiny in memory>", "input_shape": SPEC.shape, **changes}
    return run(CONFIG.model_copy(update=told), teacher=teacher, folder=folder)


def test_a_run_of_a_network_in_memory_comes_back_elsewhere(tmp_path: Path) -> None:
    made = in_memory(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    loaded = restored(tmp_path / "moved")
    x = made.images.images
    with torch.no_grad():
        assert torch.equal(loaded.teacher(x), made.teacher(x))
        assert torch.equal(loaded.student(x), made.student(x))
        assert torch.equal(loaded.integer_model(x), made.integer_model(x))
    assert loaded.spec == made.spec
    assert list(dict(loaded.student.named_parameters())) == list(
        dict(made.student.named_parameters())
    )


def test_a_kept_teacher_that_was_changed_is_refused(tmp_path: Path) -> None:
    in_memory(tmp_path)
    path = tmp_path / "teacher.pt2"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ConfigError, match="is not the file that the run wrote"):
        restored(tmp_path)


def test_without_a_kept_teacher_a_network_in_memory_is_gone(tmp_path: Path) -> None:
    in_memory(tmp_path, keep_teacher=False)
    assert not (tmp_path / "teacher.pt2").exists()
    with pytest.raises(ModelError, match="keep_teacher=True"):
        restored(tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    from datafree.zoo import digits_resnet8

    weights = tmp_path / "weights.safetensors"
    save_file(digits_resnet8().state_dict(), weights)
    return weights


@pytest.mark.parametrize("keep", [True, None])
def test_a_run_whose_source_is_gone(tmp_path: Path, source: Path, keep: bool | None) -> None:
    changes = {"weights_file": source, "keep_teacher": keep}
    made = run(CONFIG.model_copy(update=changes), folder=tmp_path / "run")
    source.unlink()
    if keep is None:
        with pytest.raises(ModelError, match="--keep-teacher") as caught:
            restored(tmp_path / "run")
        assert "\n" not in str(caught.value)
        return
    loaded = restored(tmp_path / "run")
    with torch.no_grad():
        assert torch.equal(loaded.student(made.images.images), made.student(made.images.images))


def test_class_names_that_are_gone_are_left_out_of_an_export(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join("abcdefghij"))
    run(CONFIG.model_copy(update={"class_names": names}), folder=tmp_path / "run")
    names.unlink()
    told = export_run(tmp_path / "run", tmp_path / "student.pt2")
    assert any("names.txt" in note for note in told["notes"])


def test_evaluate_measures_both_networks(folder: Path, digits: Path) -> None:
    found = evaluate_run(folder, {"data": digits, "limit": None, "device": None})
    config, measured = found.config, found.measured
    assert measured["test_images"] == 360
    assert list(measured["top1"]) == ["teacher", "student"]
    assert measured["top1"]["teacher"] >= 98.5
    assert measured["top1"]["student"] > 50
    assert config.data == digits
    assert config.scheme == CONFIG.scheme


def test_evaluate_takes_a_limit(folder: Path, digits: Path) -> None:
    assert evaluate_run(folder, {"data": digits, "limit": 7}).measured["test_images"] == 7


def test_evaluate_without_data_asks_for_them(folder: Path) -> None:
    with pytest.raises(DataError, match="--data"):
        evaluate_run(folder, {})


def test_evaluate_writes_what_it_measured_and_nothing_else(folder: Path, digits: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    found = evaluate_run(folder, {"data": digits, "limit": 3})
    evaluate_run(folder, {"data": digits, "limit": 5})
    again = evaluate_run(folder, {"data": digits, "limit": 3})
    assert found.note == ""
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    written = json.loads(after.pop("evaluation.json"))
    assert after == {name: value for name, value in before.items() if name != "evaluation.json"}
    assert [one["limit"] for one in written][-2:] == [5, 3]  # the second of the same replaces
    assert written[-1]["top1"] == again.measured["top1"]
    assert restored(folder).metrics["top1"] == again.measured["top1"]
    assert restored(folder).metrics["test_images"] == 3


def test_evaluate_reaches_what_the_run_itself_measured(tmp_path: Path, digits: Path) -> None:
    made = run(CONFIG.model_copy(update={"data": digits}), folder=tmp_path)
    assert evaluate_run(tmp_path, {}).measured["top1"] == made.metrics["top1"]


def test_a_measure_in_memory_is_called_by_its_name(folder: Path, digits: Path) -> None:
    def firsts(logits: torch.Tensor, labels: torch.Tensor) -> float:
        return float((logits.argmax(1) == labels).sum())

    found = evaluate_run(folder, {"data": digits, "limit": 4}, metric=firsts)
    assert 0 <= found.measured["metric"]["student"] <= 4
    assert restored(folder).metrics["metric"] == found.measured["metric"]
    assert json.loads((folder / "evaluation.json").read_text())[-1]["measure"] == "firsts"


@pytest.mark.e2e
def test_evaluate_runs_the_onnx_file(tmp_path: Path, digits: Path) -> None:
    run(CONFIG.model_copy(update={"export": True}), folder=tmp_path)
    top1 = evaluate_run(tmp_path, {"data": digits}, onnx=True).measured["top1"]
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
