"""Networks that come with the package, trained, with a held-out test split.

The embedded default needs neither a network connection nor another package. The weights are
safetensors, the test split is a plain ``.npz`` (uint8 NHWC images and int64 labels); both are read
through :mod:`importlib.resources`, so a zipped or installed package works alike.
``scripts/train_digits_resnet8.py`` makes both files.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np
from safetensors.torch import load
from torch import nn

from datafree.zoo.digits_resnet8 import DigitsResNet8

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from numpy.typing import NDArray

__all__ = ["ZOO", "ZooEntry", "digits_resnet8", "load_digits_test"]


def _packaged(name: str) -> Traversable:
    return resources.files("datafree.zoo").joinpath(name)


@dataclass(frozen=True, kw_only=True)
class ZooEntry:
    """One built-in teacher and what its input looks like.

    Attributes:
        name: The name under which the network is asked for.
        factory: Builds the network without trained weights.
        weights: The packaged safetensors file.
        test_split: The packaged held-out split (``images`` uint8 NHWC, ``labels`` int64).
        train_sample: Some training images in the same form, for rows that compare with real data.
        input_shape: Channels, height, width.
        mean: Mean per channel of the training images scaled to 0..1.
        std: Standard deviation per channel of the training images scaled to 0..1.
        classes: Number of classes.
        description: One line for people.
    """

    name: str
    factory: Callable[[], nn.Module]
    weights: Traversable
    test_split: Traversable
    train_sample: Traversable
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    description: str

    def load(self) -> nn.Module:
        """Return the trained network on the CPU, in eval mode."""
        model = self.factory()
        model.load_state_dict(load(self.weights.read_bytes()))
        return model.eval()

    def load_test(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return the held-out images (N, H, W, C) and their labels (N,)."""
        return _load_split(self.test_split)

    def load_train_sample(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return the training images that come along (N, H, W, C) and their labels (N,)."""
        return _load_split(self.train_sample)


def _load_split(file: Traversable) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as split:
        return split["images"], split["labels"]


ZOO: dict[str, ZooEntry] = {
    entry.name: entry
    for entry in (
        ZooEntry(
            name="digits_resnet8",
            factory=DigitsResNet8,
            weights=_packaged("digits_resnet8.safetensors"),
            test_split=_packaged("digits_test.npz"),
            train_sample=_packaged("digits_train_sample.npz"),
            input_shape=(1, 8, 8),
            mean=(0.3054,),
            std=(0.3760,),
            classes=10,
            description="ResNet-8 for 8x8 grey handwritten digits (scikit-learn's digits)",
        ),
    )
}
"""The built-in teachers by name."""


def digits_resnet8() -> nn.Module:
    """Return the trained digits network on the CPU, in eval mode."""
    return ZOO["digits_resnet8"].load()


def load_digits_test() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the held-out digits: images (360, 8, 8, 1) of 0..255 and labels (360,)."""
    return ZOO["digits_resnet8"].load_test()
