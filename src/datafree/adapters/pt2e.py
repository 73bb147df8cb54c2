"""For PT2E: torchao's `prepare_pt2e`, and so ExecuTorch and OpenVINO through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from datafree.images import SyntheticSet


@dataclass(frozen=True)
class Calibration:
    """Images for a prepared program: call it with the program, or walk through the inputs.

    Attributes:
        images: for the network that is quantized.
        batch_size: images at a time; programs exported with a fixed batch take that one.
    """

    images: SyntheticSet
    batch_size: int = 1

    def __call__(self, prepared: fx.GraphModule | Callable[[Tensor], Any]) -> None:
        """Pass all images through what `prepare_pt2e` returned; its observers take them in."""
        with torch.no_grad():
            for inputs in self:
                prepared(*inputs)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """The inputs of the program, a tuple for every call."""
        for given in self.images.given(self.batch_size):
            if len(given[0]) == self.batch_size or self.batch_size > len(self.images):
                yield given

    def __len__(self) -> int:
        return max(len(self.images) // self.batch_size, min(len(self.images), 1))


def for_pt2e(images: SyntheticSet, *, batch_size: int = 1) -> Calibration:
    """A calibration loop: ``for_pt2e(images)(prepared)``.

    Args:
        images: for the network that is quantized.
        batch_size: images at a time. A program may be exported for a fixed batch, so images that do
            not fill the last batch are left out.
    """
    return Calibration(images, batch_size)
