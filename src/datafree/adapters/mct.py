"""For the Model Compression Toolkit's `pytorch_post_training_quantization`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from datafree.images import SyntheticSet


def for_mct(images: SyntheticSet, *, batch_size: int = 32) -> Callable[[], Iterator[list[Any]]]:
    """A representative dataset: a function whose every call yields all images, as arrays.

    Args:
        images: for the network that is quantized.
        batch_size: images at a time.
    """

    def representative() -> Iterator[list[Any]]:
        for given in images.given(batch_size):
            yield [tensor.numpy() for tensor in given]

    return representative
