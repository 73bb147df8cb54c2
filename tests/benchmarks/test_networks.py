"""What pages say of a network is what was measured; students fit their teachers."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from benchmarks.networks import NETWORKS, Network, load
from benchmarks.place import Place
from benchmarks.record import latest
from benchmarks.table import Table

from datafree.data import open_labelled
from datafree.errors import DataError, UnknownNameError

PLACE = Place.here()
TEACHERS = {
    dict(cell.values)["model"]: record
    for cell, record in latest(Table.load(PLACE.house / "tables" / "teachers.yaml"), PLACE).items()
}


@pytest.mark.parametrize(("name", "known"), NETWORKS.items())
def test_captions_have_the_measured_accuracy(name: str, known: object) -> None:
    record, network = TEACHERS[name], NETWORKS[name]
    assert known is network
    assert round(record.measured["top1"], 2) == network.top1
    assert record.measured["test_images"] == network.tests


def test_the_built_in_network_brings_test_and_training_images() -> None:
    network = load("digits_resnet8", PLACE)
    assert sum(len(labels) for _, labels in network.batches()) == 360
    assert sum(len(labels) for _, labels in network.batches(10)) == 10
    real = network.real_images(8, 3)
    assert real.metadata["method"] == "real"
    assert torch.equal(real.images, network.real_images(8, 3).images)
    assert network.test is not None
    test = open_labelled(network.test, network.teacher.spec)
    assert len(test) == NETWORKS["digits_resnet8"].tests


def test_shared_images_are_training_images(shared: Path) -> None:
    network = load("resnet20_cifar10jpeg", Place(PLACE.root, shared))
    assert network.real_images(4, 0).images.shape == (4, 3, 32, 32)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean digits_resnet8"):
        load("digits_resnet", PLACE)
    with pytest.raises(DataError, match=r"cifar10jpeg_train.npz: set DATAFREE_SHARED"):
        load("resnet20_cifar10jpeg", Place(PLACE.root, tmp_path))
    fake = load("lenet5_mnist", fake_mnist(tmp_path))
    with pytest.raises(DataError, match="there are no training images"):
        Network(fake.teacher, fake.test, None).real_images(1, 0)


def test_public_networks_have_no_images() -> None:
    pytest.importorskip("pytorchcv")
    network = load("pytorchcv/resnet20_cifar10", PLACE)
    assert network.teacher.spec.shape == (3, 32, 32)
    with pytest.raises(DataError, match="there are no labelled images"):
        next(network.batches())
    images = torch.randn(8, 3, 32, 32)
    values: list[torch.Tensor] = []

    def note(_module: torch.nn.Module, _given: object, found: torch.Tensor) -> None:
        values.append(found)

    model = network.teacher.model
    assert isinstance(model, torch.nn.Module)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(note)
    with torch.no_grad():
        model(images)
    assert values and all(0.5 < float(value.std()) < 2 for value in values)


def test_public_names_are_offered() -> None:
    if find_spec("timm") is None:
        pytest.skip("timm is not installed")
    with pytest.raises(UnknownNameError, match="resnet18"):
        load("timm/resnet_18", PLACE)


def fake_mnist(folder: Path) -> Place:
    import numpy as np

    (folder / "data").mkdir()
    images, labels = np.zeros((20, 28, 28, 1), np.uint8), np.arange(20) % 10
    for part in ("train", "test"):
        np.savez(folder / "data" / f"mnist_{part}.npz", images=images, labels=labels)
    return Place(PLACE.root, folder)
