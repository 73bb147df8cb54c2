"""Tiny networks for tests, one peculiarity each, on 3x8x8 images of 5 classes."""

from __future__ import annotations

import atexit
import copy
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from datafree.config import InputSpec
from datafree.generators import Generator, GeneratorConfig, save_generator
from datafree.graph.capture import capture
from datafree.images import SyntheticSet
from datafree.quant.modules import ActivationQuantizer
from datafree.testing.networks import (
    SPEC,
    Grouped,
    InPlaceResidual,
    NoNorm,
    Tiny,
    images,
    randomized,
)


class Functional(nn.Module):
    """Parameters and statistics held by the root, everything else functional."""

    mean1: Tensor
    var1: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(4, 3, 3, 3) / 5), nn.Parameter(torch.randn(4))
        self.gain1, self.shift1 = nn.Parameter(torch.rand(4) + 0.5), nn.Parameter(torch.randn(4))
        self.register_buffer("mean1", torch.randn(4) / 5)
        self.register_buffer("var1", torch.rand(4) + 0.5)
        self.w2 = nn.Parameter(torch.randn(5, 4 * 16) / 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.w1, self.b1, padding=1)
        x = F.batch_norm(x, self.mean1, self.var1, self.gain1, self.shift1, self.training)
        return F.linear(F.max_pool2d(F.relu(x), 2).flatten(1), self.w2)


class Tied(nn.Module):
    """One convolution called twice, and another whose weight belongs to both of two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.twin, self.bn = nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4)
        self.twin.weight = self.shared.weight
        self.linear = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.shared(self.stem(x)))
        x = torch.relu(self.shared(x))
        return self.linear(self.bn(self.twin(x)).mean((2, 3)))


class SharedNorm(nn.Module):
    """One batch norm called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.bn, self.linear = nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv1(x)))
        return self.linear(torch.relu(self.bn(self.conv2(x))).mean((2, 3)))


class Dropouts(nn.Module):
    """Dropout as a module, as a function and per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.drop = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.drop2d, self.linear = nn.Dropout2d(0.3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop2d(torch.relu(self.bn(self.conv(x)))).mean((2, 3))
        return self.linear(F.dropout(self.drop(x), 0.4, self.training))


class SamePadding(nn.Module):
    """`padding='same'` with an oblong kernel and dilation, and affine-free batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, (3, 5), padding="same")
        self.conv2 = nn.Conv2d(4, 4, 3, padding="same", dilation=2)
        self.bn1, self.bn2 = nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, affine=False)
        self.linear = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.bn1(self.conv1(x)))
        return self.linear(F.hardtanh(self.bn2(self.conv2(x)), 0, 6).mean((2, 3)))


class Dense(nn.Module):
    """Batch norm after linear layers, and one in front of one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4)
        self.fc1, self.bn1 = nn.Linear(36, 8), nn.BatchNorm1d(8)
        self.fc2, self.bn2, self.fc3 = nn.Linear(8, 7), nn.BatchNorm1d(7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.bn(self.conv(x)), 0.2).flatten(1)
        x = torch.relu(self.bn1(self.fc1(x)))
        return self.fc3(self.bn2(torch.relu(self.fc2(x))))


class _Holder(nn.Module):
    """Weights of its own, a child with weights, and an activation module."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.randn(4, 3, 3, 3) / 5),
            nn.Parameter(torch.randn(4)),
        )
        self.register_buffer("scale", torch.rand(4, 1, 1) + 0.5)
        self.inner, self.act = nn.Conv2d(4, 4, 1), nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        x = F.conv2d(x, weight, self.bias) + F.conv2d(x, self.weight, self.bias)
        return self.act(self.inner(x * self.scale))


class CustomModules(nn.Module):
    """A module that holds weights, used standardised and plain; a name of `fx.GraphModule`."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(_Holder(), nn.BatchNorm2d(4))
        self.code, self.linear = nn.Sigmoid(), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.code(self.features(x)).mean((2, 3)))


class NormAfterActivation(nn.Module):
    """ReLU, then batch norm: before padded and grouped convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv3, self.bn3 = nn.Conv2d(6, 4, 3, groups=2, bias=False), nn.BatchNorm2d(4)
        self.fc1, self.bn4, self.fc2 = nn.Linear(4 * 36, 6), nn.BatchNorm1d(6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(torch.relu(self.conv1(x)))
        x = self.bn2(torch.relu(self.conv2(x)))
        x = self.bn3(torch.relu(self.conv3(x)))
        return self.fc2(self.bn4(torch.relu(self.fc1(x.flatten(1)))))


class Branched(nn.Module):
    """Blocks of RepVGG and MobileOne: linear branches, added before one activation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.wide, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.point, self.bn2 = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.skip = nn.BatchNorm2d(8)
        self.deep, self.bn3 = nn.Conv2d(8, 8, 3, 2, padding=1, groups=8), nn.BatchNorm2d(8)
        self.twin, self.scale = nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.Conv2d(8, 8, 1, 2, groups=8)
        self.linear = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn0(self.stem(x)))
        x = torch.relu(self.bn2(self.point(x)) + self.bn1(self.wide(x)) + self.skip(x))
        x = torch.relu(0.0 + self.bn3(self.deep(x)) + self.twin(x) + self.scale(x))
        return self.linear(x.mean((2, 3)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    cls.__name__: cls
    for cls in (
        Tiny, Functional, InPlaceResidual, Tied, SharedNorm, Dropouts, SamePadding, Dense, Grouped,
        CustomModules, NormAfterActivation, NoNorm, Branched,
    )
}  # fmt: skip


def build(name: str, seed: int = 0) -> nn.Module:
    """The network `name` with random weights and random batch norms, in eval mode."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return randomized(NETWORKS[name](), images(8, seed))


@cache
def _captured(name: str) -> fx.GraphModule:
    return capture(build(name), SPEC)


def captured(name: str) -> fx.GraphModule:
    """The canonical graph of `build(name)`: a copy of its own for every caller."""
    return copy.deepcopy(_captured(name))


def saved_generator(spec: InputSpec) -> Path:
    """File of a conditional generator that fits `spec`, there until Python ends."""
    return _saved_generator(spec.shape, spec.classes)


def saved_pool(spec: InputSpec) -> Path:
    """File of forty labelled images that fit `spec`, there until Python ends."""
    return _saved_pool(spec.model_dump_json())


@cache
def _saved_pool(described: str) -> Path:
    spec = InputSpec.model_validate_json(described)
    folder = Path(tempfile.mkdtemp(prefix="datafree-pool-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "pool.safetensors"
    targets = torch.arange(40) % spec.answers
    SyntheticSet(images(40, 11, spec.shape), spec, targets).save(path)
    return path


@cache
def _saved_generator(shape: tuple[int, int, int], classes: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="datafree-generator-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    config = GeneratorConfig(shape=shape, classes=classes)
    path = folder / "generator.safetensors"
    save_generator(Generator(config, torch.Generator().manual_seed(0)), path)
    return path


def quantizer_of(student: nn.Module, path: str) -> ActivationQuantizer:
    """The activation quantizer at `path`."""
    found = student.get_submodule(path)
    assert isinstance(found, ActivationQuantizer)
    return found
