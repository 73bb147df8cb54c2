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
from datafree.pictures import check_picture, read_numbers

IMAGES, LABELS = "images", "labels"


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
        check_picture(file, spec.shape[1:])
    return files, np.stack([read_numbers(file, spec.shape[1:]) for file in maps])
