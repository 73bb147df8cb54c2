"""The converted network beside the file itself, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from datafree.bounds import first_line
from datafree.errors import ModelError
from datafree.models.onnx._file import OnnxFile, Taken

TOLERANCE = 1e-4
"""Largest difference to onnxruntime, as a share of the largest output: sums have another order."""
_IMAGES = 3


def check_same(module: nn.Module, file: OnnxFile, shapes: Sequence[tuple[int, ...]]) -> None:
    """Refuse a network that does not compute what the file computes.

    Both see the same three items of Gaussian noise, pixels of any value where it takes bytes; the
    file as many at once as it takes.

    Args:
        module: the converted network.
        file: what it was made from, as it was read.
        shapes: of an item of every input.

    Raises:
        ModelError: an output differs by more than `TOLERANCE` of its largest value, or one of the
            two cannot be run.
    """
    generator = torch.Generator().manual_seed(0)
    given = [
        torch.randint(0, 256, (_IMAGES, *shape), generator=generator).float()
        if one.pixels
        else torch.randn(_IMAGES, *shape, generator=generator)
        for one, shape in zip(file.inputs, shapes, strict=True)
    ]
    expected = _run(file, given)
    try:
        with torch.no_grad():
            found = module(*given)
    except Exception as error:
        raise ModelError(
            f"{file.path} cannot be run on {_IMAGES} images at once: {first_line(error)}; export it"
            " with a dynamic batch"
        ) from error
    outputs = list(found) if isinstance(found, list | tuple) else [found]
    for output, wanted in zip(outputs, expected, strict=True):
        _compare(output.numpy(), wanted, file)


def _run(file: OnnxFile, given: Sequence[Tensor]) -> list[NDArray[np.float32]]:
    """What onnxruntime makes of the file, nothing else than its bytes read."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    count = file.batch or _IMAGES
    times = -(-_IMAGES // count)
    batches = {
        one.name: _repeated(tensor, one, times * count).split(count)
        for one, tensor in zip(file.inputs, given, strict=True)
    }
    try:
        session = onnxruntime.InferenceSession(
            file.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        parts = [
            session.run(None, {name: split[k].numpy() for name, split in batches.items()})
            for k in range(times)
        ]
    except Exception as error:
        raise ModelError(f"onnxruntime cannot run {file.path}: {first_line(error)}") from error
    return [np.concatenate(output)[:_IMAGES] for output in zip(*parts, strict=True)]


def _repeated(tensor: Tensor, one: Taken, count: int) -> Tensor:
    """So many items of a batch, over and over, as the file takes them."""
    items = tensor[torch.arange(count) % len(tensor)]
    items = items.permute(0, 2, 3, 1) if one.channels_last else items
    return (items.to(torch.uint8) if one.pixels else items).contiguous()


def _compare(found: NDArray[np.float32], wanted: NDArray[np.float32], file: OnnxFile) -> None:
    if found.shape != wanted.shape:
        raise ModelError(
            f"{file.path} cannot be run on any number of images: {_IMAGES} give {wanted.shape} in "
            f"onnxruntime and {found.shape} here; export it with a dynamic batch"
        )
    if not np.isfinite(wanted).all():
        raise ModelError(f"{file.path} returns NaN or infinite values, by onnxruntime too")
    largest = float(np.abs(wanted).max(initial=0.0))
    difference = float(np.abs(found - wanted).max(initial=0.0))
    if not difference <= TOLERANCE * largest:
        raise ModelError(
            f"{file.path} is not understood: converted, its outputs differ from those of "
            f"onnxruntime by {difference:.2g}, where the largest is {largest:.2g}"
        )
