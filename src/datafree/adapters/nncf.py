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
    batches = list(images.given(batch_size))
    if input_name is not None:
        names = [one.name for one in images.spec.inputs]
        names = names if len(names) > 1 else [input_name]
        return nncf.Dataset(
            [{n: t.numpy() for n, t in zip(names, given, strict=True)} for given in batches]
        )
    return nncf.Dataset([next(iter(given)) if len(given) == 1 else given for given in batches])
