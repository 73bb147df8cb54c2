"""What files say of themselves."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import onnx
import pytest
import torch

import datafree
from datafree.config import InputSpec, RunConfig
from datafree.errors import ConfigError
from datafree.images import SyntheticSet
from datafree.runs.exporting import about, class_names
from datafree.runs.finished import export_run

SPEC = InputSpec(shape=(1, 8, 8), mean=(0.5,), std=(0.5,), classes=3)


def test_what_is_said_of_a_student(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("cat\n\n dog \nÄffchen\n", encoding="utf-8")
    config = RunConfig(
        model="/home/someone/secret/net.pt2", bits="W4A4", method="dsg", images=8, seed=3,
        reconstruction="genie_m", class_names=names,
    )  # fmt: skip
    told = about(config, "abc", SPEC)
    assert told["scheme"] == "W4A4"
    assert told["images"] == "dsg"
    assert told["rounding"] == "genie_m"
    assert told["teacher"] == "net.pt2"  # no folder of this machine
    assert told["teacher_sha256"] == "abc"
    assert told["seed"] == "3"
    assert json.loads(told["class_names"]) == ["cat", "dog", "Äffchen"]
    assert "Diversifying Sample Generation" in told["citation"]
    assert "Genie" in told["citation"]
    assert "Common practice" not in told["citation"]


def test_a_student_of_real_images_says_so() -> None:
    config = RunConfig(model="net", method="dsg", images=2)
    photos = SyntheticSet(torch.zeros(2, 1, 8, 8), SPEC, metadata={"method": "real"})
    told = about(config, "abc", SPEC, photos)
    assert told["images"] == "real"
    assert "Diversifying Sample Generation" not in told["citation"]


def test_class_names_that_do_not_fit(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    config = RunConfig(model="net", class_names=names)
    with pytest.raises(ConfigError, match="cannot read class names"):
        class_names(config, SPEC)
    names.write_text("one\ntwo\n")
    with pytest.raises(ConfigError, match="has 2 names, the network 3 classes"):
        class_names(config, SPEC)


@pytest.mark.integration
def test_files_of_a_run_say_it(tmp_path: Path) -> None:
    datafree.quantize(
        "digits_resnet8", method="noise", images=8, bits="W8A8", holdout=0, latency=False,
        output=tmp_path / "run",
    )  # fmt: skip
    export_run(tmp_path / "run", tmp_path / "again.onnx")
    for path in (tmp_path / "run" / "student.onnx", tmp_path / "again.onnx"):
        told = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        assert told["teacher"] == "digits_resnet8"
        assert len(told["teacher_sha256"]) == 64
        assert told["target"] == "onnxruntime"
        assert json.loads(told["input_mean"]) == [pytest.approx(0.3054)]


@pytest.mark.integration
def test_a_run_writes_the_file_of_its_target(tmp_path: Path) -> None:
    """Or says what is missing, and has all its other files."""
    result = datafree.quantize(
        "digits_resnet8", method="noise", images=8, target="executorch", holdout=0, latency=False,
        output=tmp_path / "run",
    )  # fmt: skip
    assert (tmp_path / "run" / "student.onnx").exists()
    written = (tmp_path / "run" / "student.pte").exists()
    assert written == (find_spec("executorch") is not None)
    if not written:
        assert "pip install 'datafree[executorch]'" in result.metrics["pte"]["line"]
