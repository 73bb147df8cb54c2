"""Teachers by name, each with the labelled images it is tested on."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from io import BytesIO
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, fx

from benchmarks.place import Place
from benchmarks.public import is_public, load_public
from benchmarks.students import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    MNIST_MEAN,
    MNIST_STD,
    XRAY_MEAN,
    XRAY_STD,
    Pixels,
)  # fmt: skip
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
    """What pages say of a network, and its images in the shared data.

    Attributes:
        title: network and data in words.
        top1: of the float network on all test images, as the table `teachers` has it.
        tests: number of test images.
        test: labelled test images; None where they come with the package.
        train: training images for `real` rows, where there are some.
    """

    title: str
    top1: float
    tests: int
    test: str | None = None
    train: str | None = None


NETWORKS = {
    "digits_resnet8": Known("The built-in ResNet-8 on digits", 99.72, 360),
    "resnet20_cifar10jpeg": Known(
        "ResNet-20 on CIFAR-10-J", 88.02, 10_000, "cifar10jpeg_test.npz", "cifar10jpeg_train.npz"
    ),
    "mobilenet_v1_075_224_imagenet": Known(
        "MobileNetV1-0.75 on ImageNet", 78.08, 1_300, "imagenet/val1300", "imagenet/train1000"
    ),
    "efficientnet_lite0_imagenet": Known(
        "EfficientNet-Lite0 on ImageNet", 82.69, 1_300, "imagenet/val1300", "imagenet/train1000"
    ),
    "etinynet10_imagenet": Known(
        "EtinyNet-1.0 on ImageNet", 77.38, 1_300, "imagenet/val1300", "imagenet/train1000"
    ),
    "resnet8_mlperftiny_cifar10": Known(
        "MLPerf Tiny's ResNet-8 on CIFAR-10-J",
        75.48,
        10_000,
        "cifar10jpeg_test.npz",
        "cifar10jpeg_train.npz",
    ),
    "plaincnn_cifar10": Known(
        "A plain CNN on CIFAR-10-J",
        76.57,
        10_000,
        "cifar10jpeg_test.npz",
        "cifar10jpeg_train.npz",
    ),
    "small_vit_cifar10": Known(
        "A small ViT on CIFAR-10-J", 87.46, 10_000, "cifar10jpeg_test.npz", "cifar10jpeg_train.npz"
    ),
    "vgg_cifar10jpeg": Known(
        "A VGG on CIFAR-10-J", 84.60, 10_000, "cifar10jpeg_test.npz", "cifar10jpeg_train.npz"
    ),
    "mobilenetv2_cifar10jpeg": Known(
        "A MobileNetV2 on CIFAR-10-J",
        81.46,
        10_000,
        "cifar10jpeg_test.npz",
        "cifar10jpeg_train.npz",
    ),
    "resnet20_of_pixels": Known(
        "ResNet-20 with its normalisation inside, CIFAR-10-J",
        88.02,
        10_000,
        "cifar10jpeg_test.npz",
        "cifar10jpeg_train.npz",
    ),
    "pneumonia": Known("X-rays of PneumoniaMNIST, one logit", 86.70, 624, "pneumoniamnist28.npz"),
    "lenet5_mnist": Known("LeNet-5 on MNIST", 99.33, 10_000, "mnist_test.npz", "mnist_train.npz"),
}
"""By name, which is the `model` of a cell."""

TRAINED_HERE = {
    "lenet5_mnist": ("lenet5", (1, 28, 28), MNIST_MEAN, MNIST_STD),
    "pneumonia": ("pneumonia", (1, 28, 28), XRAY_MEAN, XRAY_STD),
    "small_vit_cifar10": ("small_vit", (3, 32, 32), CIFAR10_MEAN, CIFAR10_STD),
    "mobilenetv2_cifar10jpeg": ("mobilenetv2", (3, 32, 32), CIFAR10_MEAN, CIFAR10_STD),
    "vgg_cifar10jpeg": ("vgg", (3, 32, 32), CIFAR10_MEAN, CIFAR10_STD),
}
"""By name, of what a table trains: factory in `students.py`, input shape, mean and deviation."""

_OF_PIXELS = {"resnet20_of_pixels": "resnet20_cifar10jpeg"}  # the shared network inside


@dataclass(frozen=True)
class Network:
    """A loaded teacher.

    Attributes:
        teacher: never changed.
        test: labelled test images, or None.
        train: training images, or None.
    """

    teacher: Teacher
    test: Path | None
    train: Path | None

    @cached_property
    def graph(self) -> fx.GraphModule:
        """The teacher's canonical graph."""
        return capture(self.teacher.model, self.teacher.spec)

    def batches(self, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The first `limit` test images, normalised, and their labels, some at a time."""
        spec = self.teacher.spec
        if self.test is None:
            raise DataError(f"there are no labelled images of {self.teacher.name}")
        for images, labels in open_labelled(self.test, spec, limit).batches(batch_size(spec)):
            yield on_device(images, torch.device("cpu")), labels

    def real_images(self, count: int, seed: int) -> SyntheticSet:
        """Random training images, with labels where the archive has them: what data would give.

        Never for a data-free method.
        """
        spec = self.teacher.spec
        if self.train is None:
            raise DataError(f"there are no training images of {self.teacher.name}: leave real out")
        if self.train.suffix != ".npz":
            return calibration_set(self.train, spec, count, seed)
        with np.load(self.train) as archive:
            if "jpeg" not in archive:
                return calibration_set(self.train, spec, count, seed)
            total = len(archive["labels"])
        chosen = np.random.default_rng(seed).choice(total, count, replace=False)
        pixels, labels = decoded(self.train, chosen)
        images = pixels.float() / 255
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
        told = {"method": "real", "seed": seed}
        return SyntheticSet((images - mean) / std, spec, labels, told)


def decoded(path: Path, chosen: NDArray[np.int64] | None = None) -> tuple[Tensor, Tensor]:
    """The images of an archive of JPEG files, (N, C, H, W) uint8, and their labels.

    Args:
        path: the archive.
        chosen: which; all of them by default.
    """
    with np.load(path) as archive:
        data, offsets, labels = (archive[name] for name in ("jpeg", "offsets", "labels"))
    chosen = np.arange(len(labels)) if chosen is None else chosen
    files = (BytesIO(data[offsets[i] : offsets[i + 1]].tobytes()) for i in chosen)
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(labels[chosen]).long()


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


def trained_here(name: str, place: Place) -> ModelConfig:
    """Factory, weights and input of a network that a table of this house trains."""
    factory, shape, mean, std = TRAINED_HERE[name]
    return ModelConfig(
        source=f"{place.house / 'students.py'}:{factory}", weights_file=place.weights(name),
        input_shape=shape, mean=mean, std=std,
    )  # fmt: skip


def _teacher(name: str, place: Place) -> Teacher:
    if name in ZOO:
        return load_teacher(ModelConfig(source=name))
    if name in TRAINED_HERE:
        return load_teacher(trained_here(name, place))
    module = shared_networks(place)
    if name in _OF_PIXELS:
        known = module.NETWORKS[_OF_PIXELS[name]]
        shape = (3, known.size, known.size)
        inside = Pixels(module.build(_OF_PIXELS[name]), known.mean, known.std)
        return from_module(inside, input_shape=shape, mean=(0.0,) * 3, std=(1.0,) * 3)
    net = module.NETWORKS[name]
    shape = (3, net.size, net.size)
    return from_module(module.build(name), input_shape=shape, mean=net.mean, std=net.std)


@lru_cache(maxsize=2)
def load(name: str, place: Place) -> Network:
    """The network called `name`, a public one among them.

    Raises:
        UnknownNameError: no such network.
        DataError: its files are not there.
    """
    if is_public(name):
        return Network(load_public(name), None, None)
    if name not in NETWORKS:
        raise UnknownNameError("network", name, NETWORKS)
    known = NETWORKS[name]
    if known.test is None:
        entry = ZOO[name]
        return Network(
            _teacher(name, place), Path(str(entry.test_split)), Path(str(entry.train_sample))
        )
    train = None if known.train is None else place.data(known.train)
    return Network(_teacher(name, place), place.data(known.test), train)
