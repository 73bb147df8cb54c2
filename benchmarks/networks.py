"""Teachers by name, each with the labelled images it is tested on."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from io import BytesIO
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image
from torch import Tensor, fx

from benchmarks.place import Place
from datafree.config import ModelConfig
from datafree.data import calibration_set, open_labelled
from datafree.errors import DataError, UnknownNameError
from datafree.graph.capture import capture
from datafree.images import SyntheticSet, batch_size
from datafree.models import Teacher, from_module, load_teacher
from datafree.tensors import on_device
from datafree.zoo import ZOO


@dataclass(frozen=True)
class Known:
    """What pages say of a network, and where it comes from.

    Attributes:
        title: network and data in words.
        top1: of the float network on all test images, as the table `teachers` has it.
        tests: number of test images.
        load: the teacher.
        test: labelled test images.
        train: training images for `real` rows, where there are some.
    """

    title: str
    top1: float
    tests: int
    load: Callable[[Place], Teacher]
    test: Callable[[Place], Path]
    train: Callable[[Place], Path] | None = None


@dataclass(frozen=True)
class Network:
    """A loaded teacher.

    Attributes:
        teacher: never changed.
        test: labelled test images.
        train: training images, or None.
    """

    teacher: Teacher
    test: Path
    train: Path | None

    @cached_property
    def graph(self) -> fx.GraphModule:
        """The teacher's canonical graph."""
        return capture(self.teacher.model, self.teacher.spec)

    def batches(self, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The first `limit` test images, normalised, and their labels, some at a time."""
        spec = self.teacher.spec
        for images, labels in open_labelled(self.test, spec, limit).batches(batch_size(spec)):
            yield on_device(images, torch.device("cpu")), labels

    def real_images(self, count: int, seed: int) -> SyntheticSet:
        """Random training images: what data would give, never for a data-free method."""
        spec = self.teacher.spec
        if self.train is None:
            raise DataError(f"there are no training images of {self.teacher.name}: leave real out")
        if self.train.suffix != ".npz":
            return calibration_set(self.train, spec, count, seed)
        with np.load(self.train) as archive:
            if "jpeg" not in archive:
                return calibration_set(self.train, spec, count, seed)
            data, offsets = archive["jpeg"], archive["offsets"]
        chosen = np.random.default_rng(seed).choice(len(offsets) - 1, count, replace=False)
        files = (BytesIO(data[offsets[i] : offsets[i + 1]].tobytes()) for i in chosen)
        pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
        told = {"method": "real", "seed": seed}
        return SyntheticSet((images - mean) / std, spec, metadata=told)


def shared_networks(place: Place) -> ModuleType:
    """The module `data/networks.py` of the shared data."""
    name = "_shared_networks"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, place.data("networks.py"))
        assert spec is not None and spec.loader is not None  # noqa: S101 - the file is there
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    return sys.modules[name]


def _shared(name: str) -> Callable[[Place], Teacher]:
    def load(place: Place) -> Teacher:
        module = shared_networks(place)
        net = module.NETWORKS[name]
        shape = (3, net.size, net.size)
        return from_module(module.build(name), input_shape=shape, mean=net.mean, std=net.std)

    return load


def _lenet5(place: Place) -> Teacher:
    from benchmarks.students import MNIST_MEAN, MNIST_STD

    return load_teacher(
        ModelConfig(
            source=f"{Path(__file__).with_name('students.py')}:lenet5",
            weights_file=place.results / "lenet5_mnist.safetensors",
            input_shape=(1, 28, 28), mean=MNIST_MEAN, std=MNIST_STD,
        )
    )  # fmt: skip


NETWORKS = {
    "digits_resnet8": Known(
        "The built-in ResNet-8 on digits",
        99.72,
        360,
        lambda _: load_teacher(ModelConfig(source="digits_resnet8")),
        lambda _: Path(str(ZOO["digits_resnet8"].test_split)),
        lambda _: Path(str(ZOO["digits_resnet8"].train_sample)),
    ),
    "resnet20_cifar10jpeg": Known(
        "ResNet-20 on CIFAR-10-J",
        88.02,
        10_000,
        _shared("resnet20_cifar10jpeg"),
        lambda place: place.data("cifar10jpeg_test.npz"),
        lambda place: place.data("cifar10jpeg_train.npz"),
    ),
    "mobilenet_v1_075_224_imagenet": Known(
        "MobileNetV1-0.75 on ImageNet",
        78.08,
        1_300,
        _shared("mobilenet_v1_075_224_imagenet"),
        lambda place: place.data("imagenet/val1300"),
        lambda place: place.data("imagenet/train1000"),
    ),
    "lenet5_mnist": Known(
        "LeNet-5 on MNIST",
        99.33,
        10_000,
        _lenet5,
        lambda place: place.data("mnist_test.npz"),
    ),
}
"""By name, which is the `model` of a cell."""


@lru_cache(maxsize=2)
def load(name: str, place: Place) -> Network:
    """The network called `name`.

    Raises:
        UnknownNameError: no such network.
        DataError: its files are not there.
    """
    if name not in NETWORKS:
        raise UnknownNameError("network", name, NETWORKS)
    known = NETWORKS[name]
    train = None if known.train is None else known.train(place)
    return Network(known.load(place), known.test(place), train)
