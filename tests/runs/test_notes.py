"""What a user should know of a network is told by both doors, and kept with the run."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import datafree
from commands import INPUT, QUICK, Command, refused
from datafree.errors import ModelError, NetworkWarning
from datafree.testing.networks import NoNorm, Tiny
from networks import build

pytestmark = pytest.mark.integration

GIVEN: dict[str, Any] = {
    "input_shape": (3, 8, 8), "images": 4, "holdout": 0, "calibrator": "minmax", "device": "cpu",
}  # fmt: skip
FRESH = "none of the 2 batch norms ever saw data (mean 0, variance 1 everywhere): "
NETS = """
import torch
from torch import nn
from datafree.testing.networks import Tiny, images, randomized
def fresh(): return Tiny()
def half(): return randomized(Tiny(), images(8)).half()
"""


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    path = tmp_path / "nets.py"
    path.write_text(NETS, encoding="utf-8")
    return path


def test_a_warning_names_the_line_of_the_user() -> None:
    with pytest.warns(NetworkWarning, match="NoNorm holds float16 numbers") as caught:
        result = datafree.quantize(NoNorm().half(), method="noise", **GIVEN)
    assert caught[0].filename == __file__
    assert result.metrics["notes"] == [
        "NoNorm holds float16 numbers: it is quantized as a float32 copy"
    ]
    with pytest.warns(NetworkWarning, match="NoNorm holds float64 numbers") as caught:
        datafree.synthesize(NoNorm().double(), method="noise", input_shape=(3, 8, 8), excite=False)
    assert caught[0].filename == __file__


def test_nothing_is_noted_of_ordinary_networks() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = datafree.quantize(build("Tiny"), method="noise", **GIVEN)
    assert "notes" not in result.metrics


def test_an_untrained_network_is_warned_of_and_methods_of_statistics_refuse_it() -> None:
    with pytest.warns(NetworkWarning) as caught:
        result = datafree.quantize(Tiny(), method="noise", bias_correction="analytic", **GIVEN)
    assert str(caught[0].message).startswith(FRESH)
    assert result.metrics["notes"] == [str(caught[0].message)]
    # Nothing is known of what layers return, so no bias is corrected by it.
    assert set(result.metrics["bias_not_corrected"]) >= {"conv2", "linear"}
    said = "uses batch-norm statistics, and none of the 2 batch norms of this network ever saw data"
    choices: list[dict[str, Any]] = [
        {"method": "zeroq"}, {"method": "dsg"}, {"method": "genie"},
        {"method": "noise", "training": "gdfq"}, {"calibrator": "bn_statistics"},
    ]  # fmt: skip
    for choice in choices:
        with pytest.raises(ModelError, match=said):
            datafree.quantize(Tiny(), **GIVEN | choice)
    with pytest.raises(ModelError, match=said):
        datafree.synthesize(Tiny(), input_shape=(3, 8, 8))


def test_the_student_of_a_distillation_need_not_be_trained() -> None:
    options = {"warmup": 1, "iterations": 1, "width": 8, "batch_size": 4, "holdout": 4}
    student = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))
    call: dict[str, Any] = {
        "training_options": options | {"calibration_images": 4}, "input_shape": (3, 8, 8),
        "holdout": 0, "device": "cpu",
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error", NetworkWarning)
        datafree.distill(build("Tiny"), student=nn.DataParallel(student), **call)
    with pytest.warns(NetworkWarning, match="Sequential holds float64 numbers"):
        datafree.distill(build("Tiny"), student=student.double(), **call)


@pytest.mark.usefixtures("no_export")
def test_the_command_line_shows_a_line_and_keeps_it(datafree_command: Command, nets: Path) -> None:
    done = datafree_command("quantize", f"{nets}:half", *QUICK, *INPUT)
    assert done.code == 0, done.err
    line = f"{nets}:half holds float16 numbers: it is quantized as a float32 copy"
    assert done.err.splitlines()[0] == f"note: {line}"
    assert "note " in done.out and "holds float16 numbers" in done.out
    results = json.loads(Path("run/metrics.json").read_text(encoding="utf-8"))["results"]
    assert results["notes"] == [line]


def _quick_noise(*arguments: str) -> tuple[str, ...]:
    return (*arguments, *INPUT, "--method", "noise", "--images", "4", "--device", "cpu")


def test_the_command_line_is_loud_about_forgotten_weights(
    datafree_command: Command, nets: Path
) -> None:
    done = datafree_command("synthesize", *_quick_noise(f"{nets}:fresh", "--no-excite"))
    assert done.code == 0, done.err
    assert done.err.startswith(f"note: {FRESH}")
    assert "weights_file" in done.err
    refused(
        datafree_command("synthesize", f"{nets}:fresh", *INPUT, "--method", "zeroq", "--force"),
        "zeroq uses batch-norm statistics", "load the trained weights first",
    )  # fmt: skip
    refused(
        datafree_command("quantize", f"{nets}:fresh", *INPUT, *QUICK),
        "zeroq uses batch-norm statistics", "load the trained weights first",
    )  # fmt: skip


@pytest.mark.usefixtures("no_export")
def test_which_weights_of_a_checkpoint_were_taken_is_shown(
    datafree_command: Command, nets: Path
) -> None:
    own, other = build("Tiny").state_dict(), build("Tiny", seed=1).state_dict()
    torch.save({"model": other, "model_ema": own}, "w.pth")
    weights = ("--weights-file", "w.pth")
    done = datafree_command("quantize", f"{nets}:fresh", *INPUT, *QUICK, *weights)
    assert done.code == 0, done.err
    assert done.err == "note: w.pth: the averaged weights model_ema were taken, not model\n"
