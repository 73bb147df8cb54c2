"""For `nncf.quantize`."""

from __future__ import annotations

from typing import Any

from datafree.adapters._tool import imported
from datafree.images import SyntheticSet


def for_nncf(images: SyntheticSet, *, batch_size: int = 1, input_name: str | None = None) -> Any:
    """An `nncf.Dataset` of the images.

    NNCF averages extremes over the *batches*, so `batch_size` bears on the ranges; 1 is what NNCF
    takes by default. It looks at `subset_size` batches, 300 where nothing else is said.

    Args:
        images: for the network that is quantized.
        batch_size: images at a time.
        input_name: of an ONNX model, which takes its images by name; None for PyTorch and OpenVINO.

    Raises:
        ConfigError: NNCF cannot be imported.
    """
    nncf = imported("nncf", "nncf")
    batches = list(images.batches(batch_size))
    if input_name is None:
        return nncf.Dataset(batches)
    return nncf.Dataset([{input_name: batch.numpy()} for batch in batches])
