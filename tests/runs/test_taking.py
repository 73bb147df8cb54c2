"""Damage and edits of a finished run's files: named, never computed with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import datafree
from datafree.errors import ConfigError, DatafreeError
from datafree.files import sha256

QUICK: dict[str, Any] = {
    "method": "noise", "images": 8, "holdout": 8, "isolate": False, "latency": False,
    "report": False, "export": False, "keep_teacher": True,
}  # fmt: skip
LAYER = "stem.0"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "run"
    datafree.quantize("digits_resnet8", output=folder, **QUICK)
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def hashed_again(run: Path, name: str) -> None:
    """What somebody does who edits a file and knows of the hashes."""
    record = json.loads((run / "metrics.json").read_text())
    record["hashes"][name] = sha256(run / name)
    (run / "metrics.json").write_text(json.dumps(record))


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-len(content) // 3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["student.safetensors", "images.safetensors", "teacher.pt2"])
def test_one_bit_is_enough(run: Path, name: str) -> None:
    flipped(run / name)
    with pytest.raises(ConfigError, match=rf"{name} is not the file that the run wrote"):
        _ = datafree.load_run(run).student


def test_a_changed_configuration_is_named(run: Path) -> None:
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("bits: W8A8", "bits: W4A4"))
    with pytest.raises(ConfigError, match=r"config.yaml is not the file .* quantize --config"):
        datafree.load_run(run)


def test_a_flipped_bit_in_the_kept_network_is_found_by_its_own_checksum(run: Path) -> None:
    flipped(run / "teacher.pt2")
    hashed_again(run, "teacher.pt2")
    with pytest.raises(DatafreeError, match=r"teacher\.pt2"):
        _ = datafree.load_run(run).student


def without(state: dict[str, Tensor]) -> None:
    del state[f"{LAYER}.weight"]


def beside(state: dict[str, Tensor]) -> None:
    state["other.weight"] = torch.zeros(1)


def smaller(state: dict[str, Tensor]) -> None:
    state[f"{LAYER}.weight"] = state[f"{LAYER}.weight"][:1].clone()


def doubles(state: dict[str, Tensor]) -> None:
    state[f"{LAYER}.weight"] = state[f"{LAYER}.weight"].double()


def broken(name: str, value: float) -> Callable[[dict[str, Tensor]], None]:
    def edit(state: dict[str, Tensor]) -> None:
        state[name].view(-1)[0] = value

    return edit


def fewer(state: dict[str, Tensor]) -> None:
    name = f"{LAYER}.weight_quantizer.scale"
    state[name] = state[name][:2].clone()


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (without, f"{LAYER}.weight is in one of the two only"),
        (beside, "other.weight is in one of the two only"),
        (smaller, rf"{LAYER}.weight has torch.float32 \(1, "),
        (doubles, f"{LAYER}.weight has torch.float64"),
        (broken(f"{LAYER}.weight", float("nan")), f"NaN or infinite values in {LAYER}.weight"),
        (broken(f"{LAYER}.bias", float("inf")), f"NaN or infinite values in {LAYER}.bias"),
        (broken(f"{LAYER}.weight_quantizer.scale", 0.0), f"not above 0 in {LAYER}.weight_quan"),
        (broken(f"{LAYER}.weight_quantizer.scale", -1.0), f"not above 0 in {LAYER}.weight_quan"),
        (broken(f"{LAYER}.weight_quantizer.scale", float("nan")), f"NaN .* in {LAYER}.weight_q"),
        (fewer, f"of other shapes in {LAYER}.weight_quantizer"),
    ],
)
def test_an_edited_student_is_refused_by_layer(
    run: Path, edit: Callable[[dict[str, Tensor]], None], told: str
) -> None:
    path = run / "student.safetensors"
    state = load_file(path)
    edit(state)
    save_file(state, path)
    hashed_again(run, path.name)
    with pytest.raises(ConfigError, match=told):
        _ = datafree.load_run(run).student


def test_an_untouched_run_passes(run: Path) -> None:
    assert datafree.load_run(run).student is not None
