"""Pictures by their positions, brought to the size of a network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from datafree.config import InputSpec
from datafree.errors import DataError
from datafree.pictures import read_picture

CROP_ONLY = 1.15
"""Images up to this many times the network's size are cropped without resizing."""
CROP_FRACTION = 0.875
"""Share of the resized short side that the centre crop keeps (224 of 256)."""


class PixelSource(Protocol):
    """Pictures that can be read by their positions."""

    def read(self, indices: NDArray[np.int64]) -> Tensor:
        """The pictures at `indices`: (B, C, H, W) uint8 of the network's size."""
        ...


def fit(pixels: Tensor, spec: InputSpec, name: str) -> Tensor:
    """Bring pictures to the network's size by the rule of `datafree.data`.

    Args:
        pixels: (B, C, H, W) uint8.
        spec: input of the network.
        name: where the pictures come from, for the message.

    Returns:
        (B, C, h, w) uint8 with the spec's h and w.

    Raises:
        DataError: the pictures are smaller than the network's input.
    """
    height, width = spec.shape[1:]
    rows, columns = pixels.shape[2:]
    if rows < height or columns < width:
        raise DataError(
            f"{name} is {rows}x{columns} pixels, smaller than the network's {height}x{width}"
        )
    if rows > CROP_ONLY * height or columns > CROP_ONLY * width:
        scale = max(height / rows, width / columns) / CROP_FRACTION
        rows, columns = round(rows * scale), round(columns * scale)
        pixels = F.interpolate(pixels, (rows, columns), mode="bilinear", antialias=True)
    top, left = (rows - height) // 2, (columns - width) // 2
    return pixels[:, :, top : top + height, left : left + width]


@dataclass(frozen=True)
class Stack:
    """Pictures of one size in memory."""

    pixels: Tensor  # (N, C, H, W) uint8, any strides
    spec: InputSpec
    name: str

    def read(self, indices: NDArray[np.int64]) -> Tensor:
        """See `PixelSource.read`."""
        return fit(self.pixels[torch.from_numpy(indices)], self.spec, self.name)


@dataclass(frozen=True)
class Folder:
    """Picture files, decoded when asked for."""

    files: tuple[Path, ...]
    spec: InputSpec

    def read(self, indices: NDArray[np.int64]) -> Tensor:
        """See `PixelSource.read`."""
        return torch.cat([self._one(self.files[index]) for index in indices])

    def _one(self, file: Path) -> Tensor:
        array = read_picture(file, self.spec.shape[0])
        pixels = torch.from_numpy(array)
        pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
        return fit(pixels[None], self.spec, str(file))


@dataclass(frozen=True)
class Packed:
    """Inputs that are no plain images, normalised, in memory."""

    values: Tensor  # (N, C, H, W) float32

    def read(self, indices: NDArray[np.int64]) -> Tensor:
        """The items at `indices`, normalised."""
        return self.values[torch.from_numpy(indices)]
