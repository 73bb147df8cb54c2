"""Labelled test data: what a network is measured with, never what it is quantized with.

Three layouts are read, all without unpickling anything:

* ``.npz`` with ``images`` (uint8, N x H x W x C, or N x H x W for grey) and ``labels``
  (N integers; N x H x W of them where the network tells a class at every position; numbers of any
  shape, N first, for a measure of the user's own);
  a network that takes something else than one image finds its inputs there by their names, images
  as above and values as float; where it takes one, it may be called ``images``;
* a folder with ``labels.csv`` (columns ``filename,class_index``) beside the pictures, read lazily;
* CIFAR-10 binary batches (3073-byte records): one file, or a folder with ``test_batch.bin``.

Images that are not of the network's size are fitted by one rule. Both sides at least the network's
and at most 1.15 times it: centre crop, nothing is resampled. Larger: the ImageNet protocol, that is
the short side is resized to size / 0.875 (bilinear, antialiased), then the centre is cropped.
Smaller: refused.
"""

from __future__ import annotations

import csv
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from datafree.config import InputSpec
from datafree.errors import DataError
from datafree.images import SyntheticSet, from_arrays

CROP_ONLY = 1.15
"""Images up to this many times the network's size are cropped without resizing."""
CROP_FRACTION = 0.875
"""Share of the resized short side that the centre crop keeps (224 of 256)."""

_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"))
_LISTS = ("labels.csv", "test_batch.bin")  # what makes a folder one of labelled data
_CIFAR_SHAPE = (3, 32, 32)
_CIFAR_RECORD = 1 + 3 * 32 * 32
_LAYOUTS = "an .npz file, a folder with labels.csv, or CIFAR-10 binary batches"


class PixelSource(Protocol):
    """Pictures that can be read by their positions."""

    def read(self, indices: NDArray[np.int64]) -> Tensor:
        """The pictures at `indices`: (B, C, H, W) uint8 of the network's size."""
        ...


@dataclass(frozen=True)
class LabelledImages:
    """Images with their classes; pixels become float only a batch at a time.

    Attributes:
        source: reads the pictures.
        labels: (N,) int64 classes, or what there is instead, N first.
        spec: input of the network they are normalised for.
        name: where they come from, for reports.
    """

    source: PixelSource
    labels: Tensor
    spec: InputSpec
    name: str

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in order, in batches of at most `size`.

        Yields:
            images (B, C, H, W) float32, normalised; labels (B,) int64, or what there is instead.

        Raises:
            DataError: a picture cannot be read or is smaller than the network's input.
        """
        for start in range(0, len(self), size):
            indices = np.arange(start, min(start + size, len(self)))
            yield self.take(indices), self.labels[start : start + size]

    def take(self, indices: NDArray[np.int64]) -> Tensor:
        """The images at `indices`: (B, C, H, W) float32, normalised.

        Raises:
            DataError: a picture cannot be read or is smaller than the network's input.
        """
        if self.spec.inputs:  # normalised as they were read
            return self.source.read(indices)
        mean = torch.tensor(self.spec.mean).view(1, -1, 1, 1)
        std = torch.tensor(self.spec.std).view(1, -1, 1, 1)
        return self.source.read(indices).float().div_(255).sub_(mean).div_(std)


Labels = Literal["classes", "maps", "any"]
"""A class of every image, a class at every position, numbers of any meaning and shape."""


def open_labelled(
    path: Path, spec: InputSpec, limit: int | None = None, labelled: Labels = "classes"
) -> LabelledImages:
    """Open labelled data of any of the three layouts.

    Args:
        path: file or folder.
        spec: input of the network: shape, mean, std, and the number of classes.
        limit: keep only the first so many images; None keeps all.
        labelled: what the labels are. Maps lie on the images as they are, which must have the size
            of the network's input.

    Raises:
        DataError: nothing is there, the layout is none of the three, the images do not fit the
            network, or a label is not one of its classes.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"there is no {path}: labelled data is {_LAYOUTS}")
    source, labels = _open(path, spec, labelled)
    if not len(labels):
        raise DataError(f"{path} holds no images")
    if labelled == "classes":
        _check_labels(labels, spec, path)
    kept = torch.from_numpy(labels[:limit])
    kept = kept if kept.is_floating_point() else kept.long()
    return LabelledImages(source=source, labels=kept, spec=spec, name=str(path))


def calibration_set(path: Path, spec: InputSpec, count: int, seed: int) -> SyntheticSet:
    """`count` random real images, for comparison rows only: data-free methods never see them.

    Args:
        path: labelled data as `open_labelled` takes it.
        spec: input of the network.
        count: number of images, drawn without replacement.
        seed: the same seed draws the same images.

    Returns:
        The images in normalised space with their classes as targets, method ``"real"``.

    Raises:
        DataError: as `open_labelled`, or there are fewer than `count` images.
    """
    data = open_labelled(path, spec)
    if count > len(data):
        raise DataError(f"{count} images asked for, but {path} holds {len(data)}")
    indices = np.random.default_rng(seed).choice(len(data), count, replace=False)
    return SyntheticSet(
        images=data.take(indices),
        spec=spec,
        targets=data.labels[torch.from_numpy(indices)],
        metadata={"method": "real", "source": Path(path).name, "seed": seed},
    )


def real_images(path: Path, spec: InputSpec, most: int, seed: int) -> SyntheticSet:
    """Some real images to look at, without their labels.

    Args:
        path: a folder of pictures, or of folders of them; or labelled data as `open_labelled` takes
            it, whose labels are not looked at.
        spec: input of the network.
        most: number of images, drawn without replacement; fewer where there are fewer.
        seed: the same seed draws the same images.

    Raises:
        DataError: nothing is there, or what cannot be read or does not fit the network.
    """
    path = Path(path)
    if path.is_dir() and not any((path / name).is_file() for name in _LISTS):
        source, count = _pictures(path, spec)
    else:
        data = open_labelled(path, spec, None, "any" if path.suffix == ".npz" else "classes")
        source, count = data.source, len(data)
    indices = np.random.default_rng(seed).choice(count, min(most, count), replace=False)
    labelled = LabelledImages(source, torch.zeros(count, dtype=torch.long), spec, str(path))
    metadata = {"method": "real", "source": path.name, "seed": seed}
    return SyntheticSet(labelled.take(np.sort(indices)), spec, metadata=metadata)


def _pictures(path: Path, spec: InputSpec) -> tuple[PixelSource, int]:
    """All pictures under a folder."""
    if spec.inputs or spec.shape[0] not in (1, 3):
        raise DataError(
            f"{path} holds pictures, which have 1 or 3 channels, and this network takes something"
            " else: give an .npz file"
        )
    files = tuple(sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES))
    if not files:
        raise DataError(f"folder {path} holds no pictures ({', '.join(sorted(_SUFFIXES))})")
    return _Folder(files, spec), len(files)


def fit(pixels: Tensor, spec: InputSpec, name: str) -> Tensor:
    """Bring pictures to the network's size by the module's rule.

    Args:
        pixels: (B, C, H, W) uint8.
        spec: input of the network.
        name: where the pictures come from, for the message.

    Returns:
        (B, C, h, w) uint8 with the spec's h and w.

    Raises:
        DataError: the pictures are smaller than the network's input.
    """
    height, width = spec.shape[1:]
    rows, columns = pixels.shape[2:]
    if rows < height or columns < width:
        raise DataError(
            f"{name} is {rows}x{columns} pixels, smaller than the network's {height}x{width}"
        )
    if rows > CROP_ONLY * height or columns > CROP_ONLY * width:
        scale = max(height / rows, width / columns) / CROP_FRACTION
        rows, columns = round(rows * scale), round(columns * scale)
        pixels = F.interpolate(pixels, (rows, columns), mode="bilinear", antialias=True)
    top, left = (rows - height) // 2, (columns - width) // 2
    return pixels[:, :, top : top + height, left : left + width]


@dataclass(frozen=True)
class _Stack:
    """Pictures of one size in memory."""

    pixels: Tensor  # (N, C, H, W) uint8, any strides
    spec: InputSpec
    name: str

    def read(self, indices: NDArray[np.int64]) -> Tensor:
        return fit(self.pixels[torch.from_numpy(indices)], self.spec, self.name)


@dataclass(frozen=True)
class _Folder:
    """Picture files, decoded when asked for."""

    files: tuple[Path, ...]
    spec: InputSpec

    def read(self, indices: NDArray[np.int64]) -> Tensor:
        return torch.cat([self._one(self.files[index]) for index in indices])

    def _one(self, file: Path) -> Tensor:
        from PIL import Image

        try:
            with Image.open(file) as picture:
                array = np.array(picture.convert("L" if self.spec.shape[0] == 1 else "RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"cannot read picture {file}: {_first_line(error)}") from None
        pixels = torch.from_numpy(array)
        pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
        return fit(pixels[None], self.spec, str(file))


@dataclass(frozen=True)
class _Packed:
    """Inputs that are no plain images, normalised, in memory."""

    values: Tensor  # (N, C, H, W) float32

    def read(self, indices: NDArray[np.int64]) -> Tensor:
        return self.values[torch.from_numpy(indices)]


def _open_inputs(path: Path, spec: InputSpec, labelled: Labels) -> tuple[PixelSource, NDArray[Any]]:
    """An `.npz` file with an array for every input."""
    if path.suffix != ".npz":
        names = ", ".join(one.name for one in spec.inputs)
        raise DataError(
            f"{path} holds pictures, and this network takes {names}: give an .npz file with an"
            " array of each, and labels"
        )
    content = _content(path)
    if "labels" not in content:
        raise DataError(f"{path} has no labels (it has: {', '.join(content) or 'nothing'})")
    labels = content.pop("labels")
    alone = len(spec.inputs) == 1 and spec.inputs[0].name not in content and "images" in content
    given = [content["images"]] if alone else content
    packed = from_arrays(given, spec, str(path), raw=True)
    got = f"got {labels.dtype} {labels.shape}"
    integers = labels.dtype.kind in "iu"
    if labelled == "classes" and not (labels.shape == (len(packed),) and integers):
        raise DataError(f"labels in {path} must be {len(packed)} integers, {got}")
    if labels.ndim < 1 or len(labels) != len(packed) or labels.dtype.kind not in "iufb":
        raise DataError(f"labels in {path} must be numbers for {len(packed)} items, {got}")
    return _Packed(packed), labels


def _content(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an `.npz` file by name."""
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            return {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"cannot read {path}: {_first_line(error)}") from None


def _open(path: Path, spec: InputSpec, labelled: Labels) -> tuple[PixelSource, NDArray[Any]]:
    if spec.inputs:
        return _open_inputs(path, spec, labelled)
    if labelled != "classes" and path.suffix != ".npz":
        raise DataError(
            f"{path} holds one class for every image, and this network tells none: give an .npz"
            " file with images and labels"
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
    raise DataError(f"cannot tell what {path} is: labelled data is {_LAYOUTS}")


def _open_npz(path: Path, spec: InputSpec, labelled: Labels) -> tuple[PixelSource, NDArray[Any]]:
    try:
        with path.open("rb") as file:
            images, labels = _arrays(np.load(file, allow_pickle=False), path)
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"cannot read {path}: {_first_line(error)}") from None
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
    got = f"got {labels.dtype} {labels.shape}"
    integers = labels.dtype.kind in "iu"
    if labelled == "classes" and not (labels.shape == images.shape[:1] and integers):
        raise DataError(f"labels in {path} must be {len(images)} integers, {got}")
    if labelled == "maps":
        size = spec.shape[1:]
        if images.shape[1:3] != size:
            raise DataError(
                f"images in {path} are {images.shape[1]}x{images.shape[2]} pixels, the network"
                f" takes {size[0]}x{size[1]}: where every pixel has a class sizes must be the same"
            )
        if not (labels.shape == images.shape[:3] and integers):
            raise DataError(f"labels in {path} must be a class for every pixel, {got}")
    if labels.ndim < 1 or len(labels) != len(images) or labels.dtype.kind not in "iufb":
        raise DataError(f"labels in {path} must be numbers for {len(images)} images, {got}")


def _arrays(content: object, path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    if not isinstance(content, np.lib.npyio.NpzFile):
        raise DataError(f"cannot read {path}: it holds one bare array, not an .npz archive")
    for prefix in ("", "test_"):  # MedMNIST and others keep all splits in one file
        if f"{prefix}images" in content.files and f"{prefix}labels" in content.files:
            images, labels = content[f"{prefix}images"], content[f"{prefix}labels"]
            column = bool(prefix) and labels.ndim == 2 and labels.shape[1] == 1
            return images, labels[:, 0] if column else labels
    missing = [name for name in ("images", "labels") if name not in content.files]
    found = ", ".join(content.files) or "nothing"
    raise DataError(f"{path} has no {' and no '.join(missing)} (it has: {found})")


def _open_cifar(path: Path, spec: InputSpec) -> tuple[PixelSource, NDArray[np.int64]]:
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"cannot read {path}: {_first_line(error)}") from None
    if not content.size or content.size % _CIFAR_RECORD:
        raise DataError(
            f"{path} is not a CIFAR-10 binary batch: {content.size} bytes "
            f"are not a multiple of {_CIFAR_RECORD}"
        )
    records = content.reshape(-1, _CIFAR_RECORD)
    pixels = torch.from_numpy(records[:, 1:].reshape(-1, *_CIFAR_SHAPE))
    return _stack(pixels, spec, path), records[:, 0].astype(np.int64)


def _stack(pixels: Tensor, spec: InputSpec, path: Path) -> _Stack:
    if pixels.shape[1] != spec.shape[0]:
        raise DataError(
            f"images in {path} have {pixels.shape[1]} channels, the network takes {spec.shape[0]}"
        )
    fit(pixels[:1], spec, f"every image in {path}")
    return _Stack(pixels=pixels, spec=spec, name=str(path))


def _open_folder(path: Path, spec: InputSpec) -> tuple[PixelSource, NDArray[np.int64]]:
    if spec.shape[0] not in (1, 3):
        raise DataError(
            f"pictures have 1 or 3 channels, the network takes {spec.shape[0]}: use .npz"
        )
    table = path / "labels.csv"
    files: list[Path] = []
    labels: list[int] = []
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not {"filename", "class_index"} <= set(reader.fieldnames or ()):
                raise DataError(f"{table} must begin with the line filename,class_index")
            for row in reader:
                files.append(path / (row["filename"] or ""))
                labels.append(_class_index(row["class_index"], f"{table}, line {reader.line_num}"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {table}: {_first_line(error)}") from None
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise DataError(
            f"{table} lists {len(absent)} files that are not there, the first is {absent[0]!r}"
        )
    return _Folder(files=tuple(files), spec=spec), np.array(labels, dtype=np.int64)


def _class_index(text: str | None, where: str) -> int:
    try:
        return int(text or "")
    except ValueError:
        raise DataError(f"{where}: class_index must be an integer, got {text!r}") from None


def _check_labels(labels: NDArray[np.int64], spec: InputSpec, path: Path) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= spec.answers))
    if len(wrong):
        index = int(wrong[0])
        raise DataError(
            f"label {int(labels[index])} at index {index} of {path} is out of range: "
            f"the network has {spec.answers} classes, labels go from 0 to {spec.answers - 1}"
        )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
