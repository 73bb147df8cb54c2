"""The lines that people copy do what the student does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import datafree
from datafree.config import InputSpec, RunConfig
from datafree.runs.snippet import snippet
from datafree.zoo import ZOO


@pytest.mark.integration
@pytest.mark.parametrize(
    ("target", "bytes_", "named"),
    [("onnxruntime", False, True), ("onnxruntime", True, False), ("openvino", False, True)],
)
def test_it_classifies_a_picture(tmp_path: Path, target: str, bytes_: bool, named: bool) -> None:
    if find_spec(target) is None:
        pytest.skip(f"{target} is not installed")
    names = tmp_path / "names.txt"
    names.write_text("".join(f"digit {k}\n" for k in range(10)))
    result = datafree.quantize(
        "digits_resnet8", method="noise", images=16, target=target, input_uint8=bytes_,
        class_names=names if named else None, latency=False, holdout=0, output=tmp_path / "run",
    )  # fmt: skip
    code = result.snippet()
    assert code is not None and len(code.splitlines()) <= 15
    picture = ZOO["digits_resnet8"].load_test()[0][5]
    Image.fromarray(picture[..., 0]).save(tmp_path / "image.png")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    mean, std = (torch.tensor(values) for values in (result.spec.mean, result.spec.std))
    image = (torch.from_numpy(picture).permute(2, 0, 1)[None] / 255 - mean) / std
    answer = int(result.integer_model(image.float()).argmax())
    told = named and target == "onnxruntime"
    assert done.stdout.strip() == (f"digit {answer}" if told else str(answer))


def test_pictures_of_a_network() -> None:
    config = RunConfig(model="net", target="tensorrt", any_size=True)
    rgb = InputSpec(shape=(3, 20, 30), mean=(0.5,) * 3, std=(0.25,) * 3, classes=2)
    code = snippet(Path("runs") / "student.onnx", rgb, config)
    assert code is not None
    assert 'InferenceSession("runs/student.onnx")' in code
    assert '.convert("RGB")\n' in code  # of any size
    assert "[0.5, 0.5, 0.5]) / [0.25, 0.25, 0.25]" in code
    fixed = snippet(Path("student.onnx"), rgb, config.model_copy(update={"any_size": False}))
    assert fixed is not None and ".resize((30, 20))" in fixed
    depth = InputSpec(shape=(4, 8, 8), mean=(0.0,) * 4, std=(1.0,) * 4, classes=2)
    assert snippet(Path("student.onnx"), depth, config) is None


@pytest.mark.integration
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_what_is_printed_fits_the_task(tmp_path: Path, target: str) -> None:
    """Runs the lines for classes at every position, for one logit, and for several tensors."""
    if find_spec(target) is None:
        pytest.skip(f"{target} is not installed")
    Image.new("RGB", (16, 16), (200, 40, 90)).save(tmp_path / "image.png")
    for head, printed in (
        (nn.Conv2d(4, 5, 1), r"(?s)\[\[[0-4] .*[0-4]\]\]"),
        (nn.Sequential(nn.Flatten(), nn.Linear(4 * 16 * 16, 1)), "[01]"),
        (Two(), r"\[\(1, 4, 16\), \(1, 2, 16\)\]"),
    ):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), head).eval()
        result = datafree.quantize(
            net, input_shape=(3, 16, 16), method="noise", images=4, target=target, latency=False,
            holdout=0, output=tmp_path / "run", force=True,
        )  # fmt: skip
        code = result.snippet()
        assert code is not None and len(code.splitlines()) <= 15
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )  # fmt: skip
        assert re.fullmatch(printed, done.stdout.strip()), done.stdout


class Two(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"rows": x.mean(3), "columns": x[:, :2].mean(2)}
