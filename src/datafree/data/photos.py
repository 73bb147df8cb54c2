"""Pictures of anything, brought to the form that a network takes; labels are not looked at."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from datafree.config import InputSpec
from datafree.data._arrays import Arrays
from datafree.data._layouts import PICTURES
from datafree.data._pictures import fit
from datafree.errors import DataError
from datafree.images import SyntheticSet
from datafree.pictures import read_picture

_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601


def check_photos(path: Path | str, spec: InputSpec, count: int) -> None:
    """Refuse what `photos_in` cannot draw `count` pictures from, before anything else is done.

    Raises:
        DataError: as there.
    """
    _opened(Path(path), spec, count)


def photos_in(path: Path | str, spec: InputSpec, count: int, seed: int) -> SyntheticSet:
    """Some of the pictures at `path`, of any size and in grey or colours, without labels.

    Pictures that are smaller than the network's input are enlarged to cover it; otherwise they are
    fitted as labelled images are. Grey is repeated for a network of three channels, and colours
    are weighed to grey for one of a single channel.

    Args:
        path: a folder of pictures, or of folders of them; or an ``.npz`` file with ``images`` in
            uint8, (N, H, W) or (N, H, W, C).
        spec: input of the network, one image of 1 or 3 channels.
        count: number of pictures, drawn without replacement.
        seed: the same seed draws the same pictures.

    Raises:
        DataError: nothing is there, or too little, or what cannot be read, or the network takes no
            picture.
    """
    path = Path(path)
    held, read = _opened(path, spec, count)
    chosen = np.random.default_rng(seed).choice(held, count, replace=False)
    pixels = torch.cat([_fitted(read(int(i)), spec, str(path)) for i in np.sort(chosen)])
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
    metadata = {"method": "photos", "source": path.name, "seed": seed}
    return SyntheticSet(pixels.float().div_(255).sub_(mean).div_(std), spec, metadata=metadata)


def _opened(path: Path, spec: InputSpec, count: int) -> tuple[int, Callable[[int], NDArray[Any]]]:
    """How many pictures are at `path`, at least `count`, and how each is read."""
    if spec.inputs or spec.shape[0] not in (1, 3):
        raise DataError(f"{path} holds photos, and this network takes no picture: leave photos out")
    if not path.exists():
        raise DataError(f"there is no {path}: photos are a folder of pictures or an .npz file")
    held, read = _folder(path, spec) if path.is_dir() else _archive(path)
    if held < count:
        raise DataError(
            f"{count} photos are asked for, and {path} holds {held}: lower images or photo_share"
        )
    return held, read


def _folder(path: Path, spec: InputSpec) -> tuple[int, Callable[[int], NDArray[Any]]]:
    """How many pictures are under the folder `path`, and how each is read."""
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURES)
    if not files:
        raise DataError(f"folder {path} holds no pictures ({', '.join(sorted(PICTURES))})")
    return len(files), lambda index: read_picture(files[index], spec.shape[0])


def _archive(path: Path) -> tuple[int, Callable[[int], NDArray[Any]]]:
    """How many pictures are in the file `path`, and how each is read."""
    if path.suffix != ".npz":
        raise DataError(f"{path} is no folder of pictures and no .npz file: photos are one of them")
    content = Arrays(path)
    names = sorted((n for n in content if n.endswith("images")), key=len)
    if not names:
        raise DataError(f"{path} holds no array called images: {', '.join(content) or 'nothing'}")
    images = content[names[0]]
    channels = images.shape[3] if images.ndim == 4 else 1
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or channels not in (1, 3):
        raise DataError(
            f"{names[0]} in {path} must be uint8 of shape (N, H, W), or (N, H, W, C) with 1 or 3"
            f" channels, got {images.dtype} {images.shape}"
        )
    if not images.size:
        raise DataError(f"{path} holds no images")
    return len(images), lambda index: images[index]


def _fitted(array: NDArray[Any], spec: InputSpec, name: str) -> Tensor:
    """A picture, (H, W) or (H, W, C), as (1, C, h, w) uint8 in the form of `spec`."""
    pixels = torch.from_numpy(array)
    pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    if len(pixels) == 1 and spec.shape[0] == 3:
        pixels = pixels.expand(3, -1, -1)
    elif len(pixels) == 3 and spec.shape[0] == 1:
        weights = torch.tensor(_LUMA).view(3, 1, 1)
        pixels = (pixels * weights).sum(0, keepdim=True).round().to(torch.uint8)
    scale = max(wanted / has for wanted, has in zip(spec.shape[1:], pixels.shape[1:], strict=True))
    pixels = pixels[None]
    if scale > 1:
        size = [math.ceil(scale * side - 1e-9) for side in pixels.shape[2:]]
        pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
    return fit(pixels, spec, name)
