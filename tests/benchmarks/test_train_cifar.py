"""Training networks on CIFAR-10-J, here on 64 images of noise."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.kinds import Bench, kind_and_config
from benchmarks.kinds.train_cifar import changed, mixed, strided_filters_in_float
from benchmarks.place import Place
from benchmarks.students import mobilenetv2
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from datafree.progress import silent


@pytest.fixture
def bench(root: Path) -> Bench:
    """With 64 training images of random pixels, and the same as test images."""
    data = root / "shared" / "data"
    data.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (64, 32, 32, 3), np.uint8)
    labels, files = np.arange(64) % 10, [_jpeg(image) for image in pixels]
    np.savez(data / "cifar10jpeg_test.npz", images=pixels, labels=labels)
    np.savez(
        data / "cifar10jpeg_train.npz", labels=labels,
        jpeg=np.frombuffer(b"".join(files), np.uint8),
        offsets=np.cumsum([0, *map(len, files)]),
    )  # fmt: skip
    return Bench(Place(root, root / "shared"), silent)


def _jpeg(image: np.ndarray[Any, Any]) -> bytes:
    file = BytesIO()
    Image.fromarray(image).save(file, "JPEG")
    return file.getvalue()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("mobilenetv2_cifar10jpeg", {"optimizer": "sgd", "mixing": False}),
        ("vgg_cifar10jpeg", {"optimizer": "sgd", "mixing": False}),
        ("small_vit_cifar10", {}),
    ],
)
def test_training_writes_weights_in_half_precision(
    bench: Bench, model: str, fields: dict[str, Any]
) -> None:
    before = load_file(bench.place.weights(model))
    cell = {"kind": "train_cifar", "model": model, "seed": 0, "epochs": 2, "batch": 32}
    kind, config = kind_and_config(cell | fields, "a cell")
    found = kind.measure(config, bench)
    assert found["test_images"] == 64
    assert 0 <= found["top1"] <= 100
    kept = load_file(bench.place.weights(model))
    assert {key: value.shape for key, value in kept.items()} == {
        key: value.shape for key, value in before.items()
    }
    assert {value.dtype for value in kept.values() if value.is_floating_point()} == {torch.half}
    assert any(not torch.equal(value, before[key]) for key, value in kept.items())


def test_only_depthwise_layers_with_a_stride_stay_float() -> None:
    network, kinds = mobilenetv2(), dict[nn.Module, torch.dtype]()

    def note(layer: nn.Module, _given: object, found: torch.Tensor) -> None:
        kinds[layer] = found.dtype

    strided_filters_in_float(network)
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    for layer in layers:
        layer.register_forward_hook(note)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        network(torch.randn(2, 3, 32, 32))
    strided = {layer for layer in layers if layer.groups > 1 and layer.stride == (2, 2)}
    assert len(strided) == 3
    assert {layer for layer, kind in kinds.items() if kind == torch.float32} == strided


def test_images_are_moved_at_most_four_pixels() -> None:
    torch.manual_seed(0)
    images = torch.zeros(64, 3, 32, 32)
    images[:, :, 16, 16] = 1
    found = changed(images)
    assert found.shape == images.shape
    places = found[:, 0].nonzero()
    assert len(places) == 64
    assert set(places[:, 1].tolist()) == set(range(12, 21))
    assert set(places[:, 2].tolist()) <= set(range(11, 21))  # 15 is the mirror of 16
    bright = found.amax((1, 2, 3))
    assert 0.7 <= float(bright.min()) < 0.8
    assert 1.2 < float(bright.max()) <= 1.3


def test_labels_are_mixed_as_images_are() -> None:
    torch.manual_seed(0)
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 8, 8)
    for _ in range(20):
        found, labels = mixed(images, torch.eye(4))
        torch.testing.assert_close(labels.sum(1), torch.ones(4))
        torch.testing.assert_close(found.mean((1, 2, 3)), labels @ torch.arange(4.0))
