"""Labelled maps as segmenters have them: a folder of pictures, and one of a class for every pixel.

``images/`` has the pictures and ``labels/`` a PNG of the same name for each, grey or of a palette,
whose numbers are classes; a number that is no class, such as 255, does not count.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datafree.config import InputSpec
from datafree.errors import DataError

IMAGES, LABELS = "images", "labels"
_NUMBERS = ("L", "P", "I;16", "I")
"""Kinds of picture that hold one number for every pixel."""


def has_maps(folder: Path) -> bool:
    """Whether `folder` has pictures and maps."""
    return (folder / IMAGES).is_dir() and (folder / LABELS).is_dir()


def label_maps(folder: Path, spec: InputSpec) -> tuple[tuple[Path, ...], NDArray[Any]]:
    """Pictures that have a map, by their names, and the maps (N, H, W).

    Args:
        folder: holds ``images`` and ``labels``.
        spec: input of the network, whose size all of them must have.

    Raises:
        DataError: there is no map, a picture is missing, or a map has another size or kind.
    """
    maps = sorted((folder / LABELS).glob("*.png"))
    if not maps:
        raise DataError(f"{folder / LABELS} holds no .png of a class for every pixel")
    pictures = {file.stem: file for file in sorted((folder / IMAGES).iterdir())}
    absent = [file.stem for file in maps if file.stem not in pictures]
    if absent:
        raise DataError(
            f"{folder / IMAGES} has no picture for {len(absent)} maps, the first is {absent[0]!r}"
        )
    files = tuple(pictures[file.stem] for file in maps)
    for file in files:
        _opened(file, spec)
    return files, np.stack([_numbers(file, spec) for file in maps])


def _numbers(file: Path, spec: InputSpec) -> NDArray[Any]:
    picture = _opened(file, spec)
    if picture.mode not in _NUMBERS:
        raise DataError(
            f"{file} is a {picture.mode} picture: a map has one number for every pixel, its class"
        )
    try:
        return np.array(picture).astype(np.int32)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"cannot read {file}: {error}") from None


def _opened(file: Path, spec: InputSpec) -> Any:
    """A picture of the network's size, not read yet."""
    from PIL import Image

    try:
        with Image.open(file) as picture:
            width, height = picture.size
            found = picture.copy() if file.parent.name == LABELS else picture
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read {file}: {(str(error).splitlines() or [''])[0]}") from None
    if (height, width) != spec.shape[1:]:
        raise DataError(
            f"{file} has {height}x{width} pixels, the network takes {spec.shape[1]}x"
            f"{spec.shape[2]}: where every pixel has a class sizes must be the same"
        )
    return found
