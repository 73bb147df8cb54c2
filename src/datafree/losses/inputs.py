"""All inputs of a network in one tensor, and each of them out of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from datafree.config.inputs import Input, layout


def input_part(
    packed: Tensor, place: int, start: int, channels: int, shape: tuple[int, ...]
) -> Tensor:
    """Input number `place`, ``(B, *shape)``, out of the packed tensor (B, C, H, W).

    Args:
        packed: all inputs of B items.
        place: among the inputs of the network.
        start: its first channel.
        channels: how many it takes.
        shape: of one item.
    """
    part = packed[:, start : start + channels]
    if tuple(part.shape[1:]) != tuple(shape):
        count = torch.Size(shape).numel()
        part = part.flatten(1)[:, :count].reshape(len(packed), *shape)
    return part.contiguous()  # as files get it, so that sums are in the same order


def pack(tensors: Sequence[Tensor], inputs: Sequence[Input]) -> Tensor:
    """(B, C, H, W) float32 of a ``(B, *shape)`` for every input; without `inputs`, the image."""
    if not inputs:
        (images,) = tensors
        return images
    places, (_, height, width) = layout(inputs)
    parts: list[Tensor] = []
    for tensor, place in zip(tensors, places, strict=True):
        flat = tensor.float().reshape(len(tensor), -1)
        padded = F.pad(flat, (0, place.channels * height * width - flat.shape[1]))
        parts.append(padded.reshape(len(tensor), place.channels, height, width))
    return torch.cat(parts, 1)


def unpack(packed: Tensor, inputs: Sequence[Input]) -> tuple[Tensor, ...]:
    """A ``(B, *shape)`` for every input, of a packed tensor; without `inputs`, the image alone."""
    if not inputs:
        return (packed,)
    places, _ = layout(inputs)
    return tuple(
        input_part(packed, k, place.start, place.channels, one.shape)
        for k, (one, place) in enumerate(zip(inputs, places, strict=True))
    )
