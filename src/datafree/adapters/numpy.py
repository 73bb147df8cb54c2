"""Arrays in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from datafree.errors import ConfigError
from datafree.files import atomic_path
from datafree.images import SyntheticSet


def save_numpy(
    images: SyntheticSet, path: str | Path, *, layout: Literal["NCHW", "NHWC"] = "NCHW"
) -> None:
    """Write the images as NumPy arrays, float32 in normalised space.

    An `.npy` file holds the images alone. An `.npz` file holds `images`, `mean` and `std`, which
    turn them into pixels ``255 (images * std + mean)``, and `targets` where there are some. Of a
    network that takes something else than an image it holds the inputs under their names.

    Args:
        images: to write.
        path: file in `.npy` or `.npz`; one that exists is replaced.
        layout: order of the dimensions: channels first as in PyTorch, or last as in TensorFlow.

    Raises:
        ConfigError: another suffix.
    """
    path = Path(path)
    if images.spec.inputs:
        _save_inputs(images, path)
        return
    values = images.images.cpu()
    if layout == "NHWC":
        values = values.permute(0, 2, 3, 1)
    array = values.contiguous().numpy()
    if path.suffix not in (".npy", ".npz"):
        raise ConfigError(f"{path} is no NumPy file: choose a name in .npz or .npy")
    with atomic_path(path) as temporary:
        if path.suffix == ".npy":
            np.save(temporary, array)
            return
        spec = images.spec
        told: dict[str, Any] = {
            "mean": np.array(spec.mean, np.float32), "std": np.array(spec.std, np.float32)
        }  # fmt: skip
        if images.targets is not None:
            told["targets"] = images.targets.cpu().numpy()
        np.savez(temporary, images=array, **told)


def _save_inputs(images: SyntheticSet, path: Path) -> None:
    """An array for every input, under its name."""
    names = [one.name for one in images.spec.inputs]
    arrays = [tensor.cpu().numpy() for tensor in next(images.given(len(images)))]
    if path.suffix not in (".npy", ".npz") or (path.suffix == ".npy" and len(names) > 1):
        raise ConfigError(f"{path} does not hold {' and '.join(names)}: choose a name in .npz")
    with atomic_path(path) as temporary:
        if path.suffix == ".npy":
            np.save(temporary, arrays[0])
            return
        told: dict[str, Any] = dict(zip(names, arrays, strict=True))
        if images.targets is not None:
            told["targets"] = images.targets.cpu().numpy()
        np.savez(temporary, **told)
