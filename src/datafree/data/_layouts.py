"""The layouts that labelled data comes in, all read without unpickling anything."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datafree.bounds import check_ordinary, first_line, inside
from datafree.config import InputSpec
from datafree.data._arrays import Arrays
from datafree.data._maps import has_maps, label_maps
from datafree.data._pictures import Folder, Packed, PixelSource, Stack, fit
from datafree.errors import DataError
from datafree.images import from_arrays

LAYOUTS = (
    "an .npz file, a folder with labels.csv, CIFAR-10 binary batches, or COCO's .json beside"
    " pictures"
)
_OTHERWISE = {
    "boxes": ", or boxes as COCO has them, a .json file beside its pictures",
    "maps": ", or a folder with images and labels, a .png for each",
}
LISTS = ("labels.csv", "test_batch.bin")
"""What makes a folder one of labelled data."""
PICTURES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"))
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_CIFAR_SHAPE = (3, 32, 32)
_CIFAR_RECORD = 1 + 3 * 32 * 32

Labels = Literal["classes", "maps", "boxes", "any"]
"""A class of every image, a class at every position, boxes, numbers of any meaning and shape."""


def _open_inputs(path: Path, spec: InputSpec, labelled: Labels) -> tuple[PixelSource, NDArray[Any]]:
    """An `.npz` file with an array for every input."""
    if path.suffix != ".npz":
        names = ", ".join(one.name for one in spec.inputs)
        raise DataError(
            f"{path} holds pictures, and this network takes {names}: give an .npz file with an"
            " array of each, and labels"
        )
    content = Arrays(path)
    if "labels" not in content:
        raise DataError(f"{path} has no labels (it has: {', '.join(content) or 'nothing'})")
    labels = content["labels"]
    alone = len(spec.inputs) == 1 and spec.inputs[0].name not in content and "images" in content
    names = [one.name for one in spec.inputs if one.name in content]
    given = [content["images"]] if alone else {name: content[name] for name in names}
    packed = from_arrays(given, spec, str(path), raw=True)
    _check_count(labels, len(packed), path, labelled, "items")
    return Packed(packed), labels


def source_and_labels(
    path: Path, spec: InputSpec, labelled: Labels
) -> tuple[PixelSource, NDArray[Any]]:
    """The pictures and the labels at `path`; arguments and errors as `open_labelled` has them."""
    if spec.inputs:
        return _open_inputs(path, spec, labelled)
    if labelled == "maps" and has_maps(path):
        files, maps = label_maps(path, spec)
        return Folder(files=files, spec=spec), maps
    if labelled != "classes" and path.suffix != ".npz":
        raise DataError(
            f"{path} holds no labels for this network, which tells no class of an image: give an"
            f" .npz file with images and labels{_OTHERWISE.get(labelled, '')}"
        )
    if path.is_dir():
        if (path / "labels.csv").is_file():
            return _open_folder(path, spec)
        if (path / "test_batch.bin").is_file():
            return _open_cifar(path / "test_batch.bin", spec)
        raise DataError(f"folder {path} has neither labels.csv nor test_batch.bin")
    if path.suffix == ".npz":
        return _open_npz(path, spec, labelled)
    if path.suffix == ".bin":
        return _open_cifar(path, spec)
    raise DataError(f"cannot tell what {path} is: labelled data is {LAYOUTS}")


def pictures_in(path: Path, spec: InputSpec) -> tuple[PixelSource, int]:
    """All pictures under a folder, and how many these are.

    Raises:
        DataError: there are none, or the network takes no picture.
    """
    if spec.inputs or spec.shape[0] not in (1, 3):
        raise DataError(
            f"{path} holds pictures, which have 1 or 3 channels, and this network takes something"
            " else: give an .npz file"
        )
    files = tuple(sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURES))
    if not files:
        raise DataError(f"folder {path} holds no pictures ({', '.join(sorted(PICTURES))})")
    return Folder(files, spec), len(files)


def _open_npz(path: Path, spec: InputSpec, labelled: Labels) -> tuple[PixelSource, NDArray[Any]]:
    images, labels = _arrays(Arrays(path))
    if not images.size:
        raise DataError(f"{path} holds no images")
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise DataError(
            f"images in {path} must be uint8 of shape (N, H, W, C) or (N, H, W), "
            f"got {images.dtype} {images.shape}"
        )
    _check_form(images, labels, spec, path, labelled)
    pixels = torch.from_numpy(images if images.ndim == 4 else images[..., None]).permute(0, 3, 1, 2)
    return _stack(pixels, spec, path), labels


def _check_form(
    images: NDArray[Any], labels: NDArray[Any], spec: InputSpec, path: Path, labelled: Labels
) -> None:
    """Refuse labels of another kind than asked for."""
    if labelled in ("maps", "boxes"):
        size = spec.shape[1:]
        if images.shape[1:3] != size:
            what = "every pixel has a class" if labelled == "maps" else "boxes lie on images"
            raise DataError(
                f"images in {path} are {images.shape[1]}x{images.shape[2]} pixels, the network"
                f" takes {size[0]}x{size[1]}: where {what} sizes must be the same"
            )
    if labelled == "maps" and not (labels.shape == images.shape[:3] and labels.dtype.kind in "iu"):
        got = f"got {labels.dtype} {labels.shape}"
        raise DataError(f"labels in {path} must be a class for every pixel, {got}")
    _check_count(labels, len(images), path, labelled, "images")


def _check_count(labels: NDArray[Any], count: int, path: Path, labelled: Labels, what: str) -> None:
    """Refuse labels that are not one for each of `count` items; `what` these are, for people."""
    got = f"got {labels.dtype} {labels.shape}"
    if labelled == "classes" and not (labels.shape == (count,) and labels.dtype.kind in "iu"):
        raise DataError(f"labels in {path} must be {count} integers, {got}")
    if labels.ndim < 1 or len(labels) != count:
        raise DataError(f"labels in {path} must be numbers for {count} {what}, {got}")


def _arrays(content: Arrays) -> tuple[NDArray[Any], NDArray[Any]]:
    for prefix in ("", "test_"):  # MedMNIST and others keep all splits in one file
        if f"{prefix}images" in content and f"{prefix}labels" in content:
            images, labels = content[f"{prefix}images"], content[f"{prefix}labels"]
            column = bool(prefix) and labels.ndim == 2 and labels.shape[1] == 1
            return images, labels[:, 0] if column else labels
    missing = [name for name in ("images", "labels") if name not in content]
    found = ", ".join(content) or "nothing"
    raise DataError(f"{content.path} has no {' and no '.join(missing)} (it has: {found})")


def _open_cifar(path: Path, spec: InputSpec) -> tuple[PixelSource, NDArray[np.int64]]:
    try:
        check_ordinary(path)
        content = np.fromfile(path, dtype=np.uint8)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {first_line(error)}") from None
    if not content.size or content.size % _CIFAR_RECORD:
        raise DataError(
            f"{path} is not a CIFAR-10 binary batch: {content.size} bytes "
            f"are not a multiple of {_CIFAR_RECORD}"
        )
    records = content.reshape(-1, _CIFAR_RECORD)
    pixels = torch.from_numpy(records[:, 1:].reshape(-1, *_CIFAR_SHAPE))
    return _stack(pixels, spec, path), records[:, 0].astype(np.int64)


def _stack(pixels: Tensor, spec: InputSpec, path: Path) -> Stack:
    if pixels.shape[1] != spec.shape[0]:
        raise DataError(
            f"images in {path} have {pixels.shape[1]} channels, the network takes {spec.shape[0]}"
        )
    fit(pixels[:1], spec, f"every image in {path}")
    return Stack(pixels=pixels, spec=spec, name=str(path))


def _open_folder(path: Path, spec: InputSpec) -> tuple[PixelSource, NDArray[np.int64]]:
    if spec.shape[0] not in (1, 3):
        raise DataError(
            f"pictures have 1 or 3 channels, the network takes {spec.shape[0]}: use .npz"
        )
    table = path / "labels.csv"
    files: list[Path] = []
    labels: list[int] = []
    try:
        check_ordinary(table)
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not {"filename", "class_index"} <= set(reader.fieldnames or ()):
                raise DataError(f"{table} must begin with the line filename,class_index")
            for row in reader:
                where = f"{table}, line {reader.line_num}"
                files.append(_listed(path, row["filename"] or "", where))
                labels.append(_class_index(row["class_index"], where))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"cannot read {table}: {first_line(error)}") from None
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise DataError(
            f"{table} lists {len(absent)} files that are not there, the first is {absent[0]!r}"
        )
    return Folder(files=tuple(files), spec=spec), np.array(labels, dtype=np.int64)


def _listed(folder: Path, name: str, where: str) -> Path:
    try:
        return inside(folder, name)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None


def _class_index(text: str | None, where: str) -> int:
    digits = (text or "").strip()
    if not _WHOLE.fullmatch(digits):
        shown = repr(text if text is None else text[:40])
        raise DataError(f"{where}: class_index must be an integer, got {shown}")
    return int(digits)
