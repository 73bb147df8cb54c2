"""Labelled boxes as COCO has them: one JSON file and a folder of pictures, read lazily."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from datafree.bounds import LARGEST_VALUES, first_line, inside, json_of, text_of
from datafree.config import InputSpec
from datafree.detection.boxes import COLUMNS, packed
from datafree.errors import DataError
from datafree.pictures import read_picture

_PARTS = ("images", "annotations", "categories")
_LONGEST = 2**20  # pixels along a side
_LARGEST_ID = 2**62
_LARGEST_CATEGORY = 2**24  # exact as float32, which boxes are kept in
_FARTHEST = 2.0**24  # pixels


@dataclass(frozen=True)
class Picture:
    """A picture of a JSON file.

    Attributes:
        file: where it is.
        height: as the JSON file has it.
        width: likewise.
    """

    file: Path
    height: int
    width: int


@dataclass(frozen=True)
class Pictures:
    """Pictures of any size, whole, brought to the network's size when asked for.

    Attributes:
        pictures: in the order of the JSON file.
        spec: input of the network.
        stretch: they are stretched to the network's size; otherwise they keep their form, lie in
            the upper left corner, and the rest is filled with the mean colour.
    """

    pictures: tuple[Picture, ...]
    spec: InputSpec
    stretch: bool

    def read(self, indices: NDArray[np.int64]) -> Tensor:
        """The pictures at `indices`: (B, C, H, W) uint8 of the network's size.

        Raises:
            DataError: one cannot be read, or has another size than the JSON file says.
        """
        return torch.stack([self._one(self.pictures[index]) for index in indices])

    def scale(self, picture: Picture) -> tuple[float, float]:
        """What x and y of a box are multiplied with."""
        height, width = self._size(picture)
        return width / picture.width, height / picture.height

    def _size(self, picture: Picture) -> tuple[int, int]:
        """Height and width it is brought to."""
        height, width = self.spec.shape[1:]
        if self.stretch:
            return height, width
        factor = min(height / picture.height, width / picture.width)
        rows, columns = round(picture.height * factor), round(picture.width * factor)
        return max(1, min(height, rows)), max(1, min(width, columns))

    def _one(self, picture: Picture) -> Tensor:
        array = read_picture(picture.file, self.spec.shape[0])
        if array.shape[:2] != (picture.height, picture.width):
            raise DataError(
                f"{picture.file} is {array.shape[1]} wide and {array.shape[0]} high, and its JSON"
                f" file says {picture.width} and {picture.height}: boxes would not lie on it"
            )
        pixels = torch.from_numpy(array)
        pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
        size = self._size(picture)
        if size != tuple(array.shape[:2]):
            pixels = F.interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]
        colour = torch.tensor([round(255 * min(max(mean, 0.0), 1.0)) for mean in self.spec.mean])
        whole = colour.to(torch.uint8).view(-1, 1, 1).repeat(1, *self.spec.shape[1:])
        whole[:, : size[0], : size[1]] = pixels
        return whole


def annotations_in(path: Path) -> Path | None:
    """The JSON file of labelled boxes at `path`: itself, or the only one in a folder; or None.

    Raises:
        DataError: a folder holds several.
    """
    if not path.is_dir():
        return path if path.suffix == ".json" else None
    if (path / "labels.csv").is_file():
        return None
    found = sorted(path.glob("*.json"))
    if len(found) > 1:
        raise DataError(
            f"folder {path} holds {len(found)} JSON files ({found[0].name}, {found[1].name}):"
            " name the one with the boxes"
        )
    return found[0] if found else None


def open_coco(
    path: Path, spec: InputSpec, *, stretch: bool = False
) -> tuple[Pictures, NDArray[np.float32]]:
    """Pictures and boxes of a COCO-style JSON file.

    Pictures are looked for beside the file, in the folders beside it and in those beside its
    folder. Labels of boxes are category ids as they stand in the file; boxes move with their
    pictures to the network's size.

    Args:
        path: the file.
        spec: input of the network, one image.
        stretch: see `Pictures`.

    Returns:
        Pictures, and boxes as `datafree.detection.boxes.packed` has them.

    Raises:
        DataError: it is no such file, a picture is missing, or a box does not make sense.
    """
    if spec.shape[0] not in (1, 3):
        raise DataError(
            f"pictures have 1 or 3 channels, the network takes {spec.shape[0]}: use .npz"
        )
    content = _content(path)
    listed = {_integer(one, "id", path, _LARGEST_ID): one for one in content["images"]}
    folder = _folder_of(path, [str(one.get("file_name", "")) for one in listed.values()])
    pictures = tuple(
        Picture(
            folder / str(one["file_name"]),
            _integer(one, "height", path, _LONGEST, least=1),
            _integer(one, "width", path, _LONGEST, least=1),
        )
        for one in listed.values()
    )
    source = Pictures(pictures, spec, stretch)
    places = {key: place for place, key in enumerate(listed)}
    rows: list[list[list[float]]] = [[] for _ in pictures]
    for image, row in _boxes(content, places, path):
        across, down = source.scale(pictures[image])
        scaled = [row[0] * across, row[1] * down, row[2] * across, row[3] * down]
        rows[image].append(scaled + row[4:])
    most = max(map(len, rows)) * len(rows) * COLUMNS
    if most > LARGEST_VALUES:
        raise DataError(
            f"{path} has {max(map(len, rows))} boxes on one of {len(rows)} images: a table of as"
            " many for each is too large; split the file"
        )
    boxes = [np.array(of_one, np.float32).reshape(-1, COLUMNS) for of_one in rows]
    return source, packed(boxes)


def _content(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        found: Any = json_of(text_of(path, encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {first_line(error)}") from None
    if not isinstance(found, dict) or not all(_is_list(found.get(name)) for name in _PARTS):
        raise DataError(
            f"{path} is no JSON file of labelled boxes: as COCO has it, it holds lists of images,"
            " annotations and categories"
        )
    content = cast("dict[str, list[dict[str, Any]]]", found)
    if not content["images"]:
        raise DataError(f"{path} lists no images")
    return content


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, dict) for one in cast("list[Any]", value)
    )


def _integer(
    one: dict[str, Any], name: str, path: Path, most: int, least: int | None = None
) -> int:
    value = one.get(name)
    low = -most if least is None else least
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= most:
        named = one.get("file_name", one.get("id"))
        told = f"the image {str(named)[:100]}" if least else "an entry"
        raise DataError(
            f"{path}: {name} of {told} must be a whole number from {low} to {most}, got"
            f" {_shown(value)}"
        )
    return value


def _shown(value: Any) -> str:
    """A value of the file for a message, which stays one line of some length."""
    if isinstance(value, int) and abs(value) > 10**40:
        return "a number of more than 40 digits"  # which Python would not always write
    return (repr(value) if isinstance(value, int | float | str | None) else str(type(value)))[:100]


def _folder_of(path: Path, names: list[str]) -> Path:
    """The folder that has all pictures."""
    beside = [path.parent, *_folders(path.parent), *_folders(path.parent.parent)]
    folder = next((place for place in beside if names[0] and _has(place, names[0], path)), None)
    if folder is None:
        raise DataError(
            f"there is no picture {names[0][:100]!r} beside {path}, in a folder there, or in one"
            " beside that: put the JSON file next to its pictures"
        )
    absent = [name for name in names if not _has(folder, name, path)]
    if absent:
        raise DataError(
            f"{path} lists {len(absent)} pictures that are not in {folder}, the first is"
            f" {absent[0][:100]!r}"
        )
    return folder


def _has(folder: Path, name: str, path: Path) -> bool:
    """Whether `folder` has the picture called `name` in the JSON file at `path`.

    Raises:
        DataError: the name leads out of the folder.
    """
    try:
        return inside(folder, name).is_file() if name else False
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None


def _folders(place: Path) -> list[Path]:
    return sorted(one for one in place.iterdir() if one.is_dir())


def _boxes(
    content: dict[str, list[dict[str, Any]]], places: dict[int, int], path: Path
) -> Iterator[tuple[int, list[float]]]:
    """Place of the image and row of every box; those without an area are left out, as COCO does."""
    known = {_integer(one, "id", path, _LARGEST_CATEGORY) for one in content["categories"]}
    for one in content["annotations"]:
        where = f"{path}: the annotation {_shown(one.get('id'))}"
        image, category = one.get("image_id"), one.get("category_id")
        if not isinstance(image, int) or image not in places:
            raise DataError(f"{where} is of image {_shown(image)}, which is not listed")
        if not isinstance(category, int) or category not in known:
            raise DataError(f"{where} is of category {_shown(category)}, which is not listed")
        box = one.get("bbox")
        if not _is_box(box):
            got = str(box)[:100]
            raise DataError(f"{where} must have bbox: left, top, width, height; got {got}")
        left, top, width, height = (float(value) for value in cast("list[float]", box))
        if width > 0 and height > 0:
            corners = [left, top, left + width, top + height]
            row = [*corners, float(category), float(bool(one.get("iscrowd", 0)))]
            yield places[image], row


def _is_box(box: Any) -> bool:
    if not isinstance(box, list):
        return False
    values = cast("list[Any]", box)
    numbers = all(isinstance(v, int | float) and abs(v) <= _FARTHEST for v in values)
    return len(values) == 4 and numbers
