"""Labelled test data: what a network is measured with, never what it is quantized with.

Five layouts are read, all without unpickling anything:

* ``.npz`` with ``images`` (uint8, N x H x W x C, or N x H x W for grey) and ``labels``
  (N integers; N x H x W of them where the network tells a class at every position; numbers of any
  shape, N first, for a measure of the user's own; N x M x 5 for boxes, see
  `datafree.detection.boxes.from_rows`);
  a network that takes something else than one image finds its inputs there by their names, images
  as above and values as float; where it takes one, it may be called ``images``;
* a folder with ``labels.csv`` (columns ``filename,class_index``) beside the pictures, read lazily;
* a folder with ``images`` and ``labels``, a class for every pixel;
* CIFAR-10 binary batches (3073-byte records): one file, or a folder with ``test_batch.bin``;
* labelled boxes as COCO has them, a ``.json`` file beside its pictures (`datafree.detection.coco`).

Images that are not of the network's size are fitted by one rule. Both sides at least the network's
and at most 1.15 times it: centre crop, nothing is resampled. Larger: the ImageNet protocol, that is
the short side is resized to size / 0.875 (bilinear, antialiased), then the centre is cropped.
Smaller: refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datafree.config import InputSpec
from datafree.data._layouts import LAYOUTS, LISTS, Labels, pictures_in, source_and_labels
from datafree.data._pictures import CROP_FRACTION, CROP_ONLY, PixelSource, fit
from datafree.detection.boxes import from_rows
from datafree.detection.coco import annotations_in, open_coco
from datafree.errors import DataError
from datafree.images import SyntheticSet

__all__ = [
    "CROP_FRACTION",
    "CROP_ONLY",
    "LabelledImages",
    "Labels",
    "PixelSource",
    "calibration_set",
    "fit",
    "open_labelled",
    "real_images",
]


@dataclass(frozen=True)
class LabelledImages:
    """Images with their classes; pixels become float only a batch at a time.

    Attributes:
        source: reads the pictures.
        labels: (N,) int64 classes, or what there is instead, N first.
        spec: input of the network they are normalised for.
        name: where they come from, for reports.
        boxed: labels are boxes (N, M, 6), which `datafree.detection.boxes_of` takes apart.
    """

    source: PixelSource
    labels: Tensor
    spec: InputSpec
    name: str
    boxed: bool = False

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


def open_labelled(
    path: Path | str,
    spec: InputSpec,
    limit: int | None = None,
    labelled: Labels = "classes",
    *,
    stretch: bool = False,
) -> LabelledImages:
    """Open labelled data of any of the layouts.

    Args:
        path: file or folder.
        spec: input of the network: shape, mean, std, and the number of classes.
        limit: keep only the first so many images; None keeps all.
        labelled: what the labels are. Maps lie on the images as they are, which must have the size
            of the network's input; so do boxes of an ``.npz``.
        stretch: pictures with boxes are stretched to the network's size, see
            `datafree.detection.coco.Pictures`.

    Raises:
        DataError: nothing is there, the layout is none of these, the images do not fit the
            network, or a label is not one of its classes.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"there is no {path}: labelled data is {LAYOUTS}")
    annotations = annotations_in(path)
    if annotations is not None:
        return _open_boxes(annotations, spec, limit, labelled, stretch)
    source, given = source_and_labels(path, spec, labelled)
    labels: NDArray[Any] = from_rows(given, path) if labelled == "boxes" else given
    if not len(labels):
        raise DataError(f"{path} holds no images")
    if labelled == "classes":
        _check_labels(labels, spec, path)
    kept = torch.from_numpy(labels[:limit])
    kept = kept if kept.is_floating_point() else kept.long()
    return LabelledImages(
        source=source, labels=kept, spec=spec, name=str(path), boxed=labelled == "boxes"
    )


def _open_boxes(
    path: Path, spec: InputSpec, limit: int | None, labelled: Labels, stretch: bool
) -> LabelledImages:
    """Pictures and boxes of a JSON file."""
    if labelled not in ("boxes", "any"):
        raise DataError(
            f"{path} holds boxes: measure with metric map, and decode, a function that makes boxes"
            " of what the network returns"
        )
    if spec.inputs:
        names = ", ".join(one.name for one in spec.inputs)
        raise DataError(f"{path} holds pictures, and this network takes {names}: give an .npz file")
    source, boxes = open_coco(path, spec, stretch=stretch)
    return LabelledImages(source, torch.from_numpy(boxes[:limit]), spec, str(path), boxed=True)


def calibration_set(path: Path | str, spec: InputSpec, count: int, seed: int) -> SyntheticSet:
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


def real_images(path: Path | str, spec: InputSpec, most: int, seed: int) -> SyntheticSet:
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
    if path.is_dir() and not any((path / name).is_file() for name in LISTS):
        source, count = pictures_in(path, spec)
    else:
        data = open_labelled(path, spec, None, "any" if path.suffix == ".npz" else "classes")
        source, count = data.source, len(data)
    indices = np.random.default_rng(seed).choice(count, min(most, count), replace=False)
    labelled = LabelledImages(source, torch.zeros(count, dtype=torch.long), spec, str(path))
    metadata = {"method": "real", "source": path.name, "seed": seed}
    return SyntheticSet(labelled.take(np.sort(indices)), spec, metadata=metadata)


def _check_labels(labels: NDArray[np.int64], spec: InputSpec, path: Path) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= spec.answers))
    if len(wrong):
        index = int(wrong[0])
        raise DataError(
            f"label {int(labels[index])} at index {index} of {path} is out of range: "
            f"the network has {spec.answers} classes, labels go from 0 to {spec.answers - 1}"
        )
