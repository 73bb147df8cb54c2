"""The converted network beside the file itself, run by onnxruntime."""

from __future__ import annotations

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from datafree.errors import ModelError
from datafree.models.onnx._file import OnnxFile, first_line

TOLERANCE = 1e-4
"""Largest difference to onnxruntime, as a share of the largest output: sums have another order."""
_IMAGES = 3


def check_same(module: nn.Module, file: OnnxFile, shape: tuple[int, int, int]) -> None:
    """Refuse a network that does not compute what the file computes.

    Both see the same three images of Gaussian noise, the file as many at once as it takes.

    Args:
        module: the converted network.
        file: what it was made from, as it was read.
        shape: of an image.

    Raises:
        ModelError: an output differs by more than `TOLERANCE` of its largest value, or one of the
            two cannot be run.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(_IMAGES, *shape, generator=generator)
    expected = _run(file, images)
    try:
        with torch.no_grad():
            found = module(images)
    except Exception as error:
        raise ModelError(
            f"{file.path} cannot be run on {_IMAGES} images at once: {first_line(error)}; export it"
            " with a dynamic batch"
        ) from error
    outputs = list(found) if isinstance(found, list | tuple) else [found]
    for output, wanted in zip(outputs, expected, strict=True):
        _compare(output.numpy(), wanted, file)


def _run(file: OnnxFile, images: Tensor) -> list[NDArray[np.float32]]:
    """What onnxruntime makes of the file, nothing else than its bytes read."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    count = file.batch or len(images)
    times = -(-len(images) // count)
    batches = images.repeat(-(-times * count // len(images)), 1, 1, 1)[: times * count]
    if file.channels_last:
        batches = batches.permute(0, 2, 3, 1)
    try:
        session = onnxruntime.InferenceSession(
            file.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        parts = [
            session.run(None, {file.images: batch.contiguous().numpy()})
            for batch in batches.split(count)
        ]
    except Exception as error:
        raise ModelError(f"onnxruntime cannot run {file.path}: {first_line(error)}") from error
    return [np.concatenate(output)[: len(images)] for output in zip(*parts, strict=True)]


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
