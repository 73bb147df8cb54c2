"""Networks of other inputs than one image, from end to end."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import datafree
from datafree.cli.app import app
from datafree.errors import ConfigError, DataError, DatafreeError, ModelError
from datafree.images import SyntheticSet

QUICK: dict[str, Any] = {
    "images": 16, "latency": False, "holdout": 0, "protocol": "paper",
    "method_options": {"iterations": 30, "margin_images": 32},
}  # fmt: skip


class Sound(nn.Module):
    """A signal (2, 200) to five classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(2, 8, 5, 2, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2),
            nn.Conv1d(8, 16, 5, 2, bias=False), nn.BatchNorm1d(16), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(16, 5)

    def forward(self, sound: Tensor) -> Tensor:
        return self.head(self.body(sound).mean(-1))


class Clip(nn.Module):
    """Video (3, 4, 8, 8) to five classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(3, 8, 3, padding=1, bias=False), nn.BatchNorm3d(8), nn.ReLU(),
            nn.Conv3d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm3d(16), nn.ReLU(),
            nn.AdaptiveAvgPool3d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(16, 5)

    def forward(self, clip: Tensor) -> Tensor:
        return self.head(self.body(clip))


class Table(nn.Module):
    """Twelve numbers to five classes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32),
            nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 5),
        )  # fmt: skip

    def forward(self, numbers: Tensor) -> Tensor:
        return self.net(numbers)


class Mixed(nn.Module):
    """An image (3, 8, 8) and six numbers to five classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        )  # fmt: skip
        self.side = nn.Sequential(nn.Linear(6, 16), nn.ReLU())
        self.head = nn.Linear(32, 5)

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:
        return self.head(torch.cat([self.body(image).mean((2, 3)), self.side(vector)], 1))


class TwoImages(nn.Module):
    """Two images of different sizes to five classes and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.right = nn.Sequential(nn.Conv2d(1, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 5)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        both = (self.left(left) + self.right(right)).mean((2, 3))
        return {"logits": self.head(both), "feature": both}


KINDS: dict[str, tuple[type[nn.Module], tuple[tuple[int, ...], ...]]] = {
    "sound": (Sound, ((2, 200),)), "clip": (Clip, ((3, 4, 8, 8),)), "table": (Table, ((12,),)),
    "mixed": (Mixed, ((3, 8, 8), (6,))), "two images": (TwoImages, ((3, 8, 8), (1, 4, 4))),
}  # fmt: skip


def given(shapes: tuple[tuple[int, ...], ...], count: int, seed: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(count, *shape, generator=random) for shape in shapes]


def made(kind: str) -> tuple[nn.Module, tuple[tuple[int, ...], ...]]:
    """A network whose batch norms have seen data."""
    cls, shapes = KINDS[kind]
    torch.manual_seed(0)
    network = cls().train()
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                layer.momentum = None
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(0, 0.3)
        for seed in range(3):
            network(*given(shapes, 64, seed))
    return network.eval(), shapes


def quantized(network: nn.Module, shapes: Any, bits: str, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return datafree.quantize(network, input_shape=shapes, bits=bits, **(QUICK | options))


def noise_of(
    student: Callable[..., Any], network: Callable[..., Any], items: list[Tensor]
) -> float:
    """Root mean square of what logits are off, over their deviation."""
    with torch.no_grad():
        wanted, found = network(*items), student(*items)
    if isinstance(wanted, dict):
        wanted, found = wanted["logits"], found["logits"]
    spread = (wanted - wanted.mean(0)).square().mean().sqrt()
    return float((found - wanted).square().mean().sqrt() / spread)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_becomes_a_file_with_its_own_inputs(kind: str, tmp_path: Path) -> None:
    network, shapes = made(kind)
    fine = quantized(network, shapes, "W7A8", output=tmp_path / "run")
    coarse = quantized(network, shapes, "W3A3")
    items = given(shapes, 64, 9)
    assert noise_of(fine.student, network, items) < 0.12
    assert noise_of(coarse.student, network, items) > 2 * noise_of(fine.student, network, items)
    assert noise_of(fine.teacher, network, items) < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "run" / "student.onnx")
    takes = {value.name: value.shape[1:] for value in session.get_inputs()}
    assert takes == {
        one.name: list(shape) for one, shape in zip(fine.spec.inputs, shapes, strict=True)
    }
    feeds = {name: item.numpy() for name, item in zip(takes, items, strict=True)}
    returned, expected = session.run(None, feeds), fine.integer_model(*items)
    logits = expected["logits"] if isinstance(expected, dict) else expected
    assert (torch.from_numpy(returned[0]).argmax(1) == logits.argmax(1)).float().mean() > 0.95
    program = torch.export.load(tmp_path / "run" / "student.pt2").module()
    found, own = program(*items), fine.student(*items)
    found = found[0] if isinstance(found, tuple | list) else found
    own = own["logits"] if isinstance(own, dict) else own
    # Of two processors one may round a tie up that the other rounds down.
    apart = (found - own).abs().amax(1)
    assert (apart < 1e-5).float().mean() > 0.9 and apart.max() < 0.05 * own.std()
    assert SyntheticSet.load(tmp_path / "run" / "images.safetensors").spec == fine.spec
    # There is a picture where there is an image.
    assert (tmp_path / "run" / "grid.png").exists() == (kind in ("mixed", "two images"))


def test_values_have_eight_bits_like_an_image_and_a_range_of_their_own() -> None:
    student = quantized(*made("mixed"), "W4A4").student
    image, vector = (student.get_submodule(f"{n}_quantizer") for n in ("image", "vector"))
    assert image.grid.bits == vector.grid.bits == 8
    assert float(image.scale) != float(vector.scale)


def test_values_are_noted_to_be_taken_as_standardised() -> None:
    network, shapes = made("mixed")
    with pytest.warns(datafree.errors.NetworkWarning, match="vector is no image"):
        datafree.quantize(
            network, input_shape=shapes, method="noise", images=8, latency=False, holdout=0
        )


def test_rounding_is_learned_on_several_inputs() -> None:
    network, shapes = made("mixed")
    learned = {"reconstruction": "qdrop", "reconstruction_options": {"iterations": 60}}
    result = quantized(network, shapes, "W3A8", **learned)
    blocks = result.metrics["reconstruction"]
    assert blocks[0]["after"] < blocks[0]["before"]  # the block that reads both
    assert sum(block["after"] for block in blocks) < sum(block["before"] for block in blocks)


def test_given_items_are_taken_by_place_and_by_name() -> None:
    network, shapes = made("mixed")
    image, vector = given(shapes, 8, 3)
    first = quantized(network, shapes, "W4A4", images=(image, vector.numpy()))
    second = quantized(network, shapes, "W4A4", images={"vector": vector, "image": image})
    assert torch.equal(first.images.images, second.images.images)
    for wrong, told in (
        (image, "has 1 arrays, and the network takes 2 inputs"),
        ((image, vector[:3]), "different numbers of items: image 8, vector 3"),
        ((image, vector[:, :5]), r"vector in images has shape \(8, 5\)"),
        ({"image": image}, "images has no vector"),
    ):
        with pytest.raises(DataError, match=told):
            quantized(network, shapes, "W4A4", images=wrong)


@pytest.mark.parametrize("method", ["intraq", "prior", "psaq", "sardfq"])
def test_methods_that_make_pictures_name_those_that_fit(method: str) -> None:
    with pytest.raises(ModelError, match=r"use the method .*noise, which fit"):
        quantized(*made("sound"), "W4A4", method=method, method_options={})


def test_a_network_without_batch_norms_gets_noise_by_default() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv1d(1, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    result = quantized(network, (1, 20), "W8A8", method_options={})
    assert result.config.method == "noise"


def test_shapes_that_do_not_fit_are_told_in_one_line() -> None:
    network, shapes = made("mixed")
    for shape, told in (
        (None, r"takes 2 inputs \(image, vector\), and the shape of none was given"),
        (shapes[0], r"takes 2 inputs \(image, vector\), and the shape of 1 was given"),
        ((*shapes, (4,)), r"takes 2 inputs \(image, vector\), and 3 shapes were given"),
        ((shapes[0], (7,)), "does not take inputs of 3, 8, 8; 7"),
    ):
        with pytest.raises(ModelError, match=told) as caught:
            quantized(network, shape, "W4A4")
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="any_size is for networks of one image"):
        quantized(network, shapes, "W4A4", any_size=True)
    with pytest.raises(DatafreeError, match="jitter is for images"):
        quantized(network, shapes, "W4A4", method_options={"jitter": 2})


@pytest.mark.filterwarnings("ignore::datafree.errors.NetworkWarning")
def test_a_program_says_its_shapes_and_is_measured_on_the_command_line(tmp_path: Path) -> None:
    network, shapes = made("mixed")
    batch = torch.export.Dim("batch", min=1)
    examples = tuple(given(shapes, 2, 0))
    program = torch.export.export(network, examples, dynamic_shapes=({0: batch},) * 2)
    torch.export.save(program, tmp_path / "net.pt2")
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (50, 8, 8, 3), dtype=np.uint8)
    vector = random.standard_normal((50, 6), dtype=np.float32)
    image = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    with torch.no_grad():
        labels = network(image, torch.from_numpy(vector)).argmax(1).numpy()
    np.savez(tmp_path / "test.npz", image=pixels, vector=vector, labels=labels)
    told = [
        "--mean",
        "0.5,0.5,0.5",
        "--std",
        "0.25,0.25,0.25",
        "--data",
        str(tmp_path / "test.npz"),
    ]
    quick = ["--images", "8", "--no-latency", "-o", "iterations=10", "-o", "margin_images=16"]
    out = str(tmp_path / "run")
    done = CliRunner().invoke(
        app, ["quantize", str(tmp_path / "net.pt2"), *told, *quick, "--output", out]
    )
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())["results"]
    assert found["top1"]["teacher"] == 100.0 and found["top1"]["student"] > 80.0
    wrong = CliRunner().invoke(
        app, ["quantize", str(tmp_path / "net.pt2"), *told, "--input-shape", "3,8,8"]
    )
    assert isinstance(wrong.exception, ModelError)
    assert "takes 2 inputs (image, vector)" in str(wrong.exception)
