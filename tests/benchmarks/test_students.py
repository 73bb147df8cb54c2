"""Networks that only the benchmarks use: those trained here, and what teachers become."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.networks import NETWORKS, TRAINED_HERE, load, trained_here
from benchmarks.place import Place
from benchmarks.students import InvertedResidual, mobilenetv2, vgg
from safetensors.torch import load_file
from torch import nn

from conftest import ROOT
from datafree.config import ModelConfig
from datafree.evaluate import top1
from datafree.models import load_teacher

FILE = ROOT / "benchmarks" / "students.py"
PLACE = Place.here()
INPUT: dict[str, Any] = {"input_shape": (1, 28, 28), "mean": (0.1307,), "std": (0.3081,)}


@pytest.mark.parametrize(
    ("factory", "count"),
    [
        ("lenet5", 6 * 26 + 16 * 151 + 120 * 401 + 84 * 121 + 10 * 85),
        ("lenet5_half", 3 * 26 + 8 * 76 + 60 * 201 + 42 * 61 + 10 * 43),
    ],
)
def test_widths(factory: str, count: int) -> None:
    teacher = load_teacher(ModelConfig(source=f"{FILE}:{factory}", **INPUT))
    assert teacher.spec.classes == 10
    assert isinstance(teacher.model, nn.Module)
    assert sum(parameter.numel() for parameter in teacher.model.parameters()) == count


@pytest.mark.parametrize(
    ("build", "parameters", "norms"), [(vgg, 576_170, 6), (mobilenetv2, 422_682, 31)]
)
def test_networks_for_cifar_have_batch_norms(
    build: Callable[[], nn.Module], parameters: int, norms: int
) -> None:
    network = build().eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == norms


@pytest.mark.parametrize(
    ("shape", "adds", "side"), [((8, 8, 1), True, 6), ((8, 8, 2), False, 3), ((8, 4, 1), False, 6)]
)
def test_inverted_residuals_add_their_input_where_it_fits(
    shape: tuple[int, int, int], adds: bool, side: int
) -> None:
    inputs, outputs, stride = shape
    block, x = InvertedResidual(inputs, outputs, 4, stride).eval(), torch.randn(1, inputs, 6, 6)
    with torch.no_grad():
        found, alone = block(x), block.layers(x)
    assert block.adds is adds
    assert found.shape == (1, outputs, side, side)
    torch.testing.assert_close(found, alone + x if adds else alone)


@pytest.mark.parametrize("name", TRAINED_HERE)
def test_weights_fit_and_are_small(name: str) -> None:
    file = PLACE.weights(name)
    assert file.stat().st_size < 2e6
    model = load_teacher(trained_here(name, PLACE)).model
    assert isinstance(model, nn.Module)
    kept = load_file(file)
    assert kept.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(value, kept[key].to(value.dtype))


@pytest.mark.parametrize("name", TRAINED_HERE)
def test_some_test_images_give_about_the_measured_accuracy(name: str, shared: Path) -> None:
    network = load(name, Place(PLACE.root, shared))
    found = top1({name: network.teacher.model}, network.batches(500))
    assert found.images == 500
    assert found.top1[name] == pytest.approx(NETWORKS[name].top1, abs=4)


def test_students_map_images_of_their_teachers_to_classes(shared: Path) -> None:
    del shared  # one of them is built from it
    for factory, shape in (("plain_digits", (1, 8, 8)), ("resnet8", (3, 32, 32))):
        given: dict[str, Any] = {"input_shape": shape, "mean": (0.0,) * shape[0]}
        config = ModelConfig(source=f"{FILE}:{factory}", **given, std=(1.0,) * shape[0])
        assert load_teacher(config).spec.classes == 10
