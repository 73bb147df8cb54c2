"""Random crops of images, scaled to full size, as trainings and IntraQ show them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MOST_STRETCHED = 4 / 3


def crop_boxes(count: int, smallest: float, generator: torch.Generator) -> Tensor:
    """(count, 4) random boxes inside the unit square: top, left, height, width.

    Areas are uniform in [smallest, 1]; the logarithm of width over height is uniform between those
    of 3/4 and 4/3, as far as the box fits; places are uniform.

    Args:
        count: number of boxes.
        smallest: area.
        generator: source of the random numbers, on the CPU.
    """
    area, stretch, top, left = torch.rand(4, count, generator=generator)
    area = smallest + (1 - smallest) * area
    # Neither side may be longer than 1: width^2 = area * ratio, height^2 = area / ratio.
    reach = torch.minimum(-area.log(), torch.tensor(math.log(_MOST_STRETCHED)))
    ratio = torch.exp((2 * stretch - 1) * reach)
    height, width = (area / ratio).sqrt(), (area * ratio).sqrt()
    return torch.stack([top * (1 - height), left * (1 - width), height, width], 1)


def cropped(images: Tensor, boxes: Tensor, mirrored: Tensor) -> Tensor:
    """A part of every image, scaled to full size by linear interpolation; differentiable.

    Args:
        images: (B, C, H, W).
        boxes: (B, 4) top, left, height, width in shares of the image.
        mirrored: (B,) whether left and right are exchanged.

    Returns:
        (B, C, H, W).
    """
    top, left, height, width = boxes.T
    rows = _interpolation(top, height, images.shape[2])
    columns = _interpolation(left, width, images.shape[3])
    columns = torch.where(mirrored[:, None, None], columns.flip(1), columns)
    # Products rather than grid_sample, whose gradient on CUDA adds in no fixed order.
    return rows[:, None].to(images) @ images @ columns[:, None].mT.to(images)


def _interpolation(start: Tensor, length: Tensor, size: int) -> Tensor:
    """(B, size, size) matrices that read `size` points of ``[start, start + length]`` of a line."""
    pixels = torch.arange(size)
    places = size * start[:, None] + (pixels + 0.5) * length[:, None] - 0.5
    places = places.clamp(0, size - 1)
    return (1 - (places[:, :, None] - pixels).abs()).clamp(min=0)
