"""Boxes of images: as people hold them, a dict for every image, and as one tensor of all images.

A box is (left, top, right, bottom) in pixels of the network's input, counted from its upper left
corner, as torchvision has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datafree.errors import ConfigError, DataError

Boxes = dict[str, Tensor]
"""Of one image. Labelled: `boxes` (n, 4), `labels` (n,) and `iscrowd` (n,), bool. Found: `boxes`,
`labels` and `scores` (n,)."""

COLUMNS = 6
"""left, top, right, bottom, label, whether it is a crowd."""
_FOUND = {"boxes": 2, "scores": 1, "labels": 1}
"""What is found on an image, and the number of dimensions of each."""
_FORM = "for every image a dict of boxes (n, 4), scores (n,) and labels (n,)"


def packed(images: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Boxes of all images in one array (N, most of an image, 6); rows of NaN are none.

    Args:
        images: of each (n, 6): left, top, right, bottom, label, crowd.
    """
    most = max((len(rows) for rows in images), default=0)
    found = np.full((len(images), most, COLUMNS), np.nan, np.float32)
    for place, rows in zip(found, images, strict=True):
        place[: len(rows)] = rows
    return found


def boxes_of(labels: Tensor) -> list[Boxes]:
    """Labelled boxes, image by image.

    Args:
        labels: (N, M, 6) as `packed` makes it.
    """
    found: list[Boxes] = []
    for rows in labels:
        known = rows[~rows[:, 4].isnan()]
        found.append(
            {"boxes": known[:, :4], "labels": known[:, 4].long(), "iscrowd": known[:, 5] > 0}
        )
    return found


def from_rows(labels: NDArray[Any], path: object) -> NDArray[np.float32]:
    """Boxes of an ``.npz`` file: (N, M, 5), left, top, right, bottom, label; label -1 is none.

    Raises:
        DataError: they have another form.
    """
    if labels.ndim != 3 or labels.shape[2] != 5 or labels.dtype.kind not in "iuf":
        raise DataError(
            f"labels in {path} must be boxes (images, boxes, 5): left, top, right, bottom in pixels"
            f" and a label, -1 where there is none; got {labels.dtype} {labels.shape}"
        )
    rows = labels.astype(np.float32)
    sides = rows[..., 2:4] - rows[..., :2]
    wrong = np.argwhere((rows[..., 4] >= 0) & ~(sides > 0).all(-1))
    if len(wrong):
        image, box = (int(index) for index in wrong[0])
        raise DataError(
            f"box {box} of image {image} in {path} is {rows[image, box, :4].tolist()}: right and"
            " bottom must be larger than left and top"
        )
    rows[rows[..., 4] < 0] = np.nan
    return np.concatenate([rows, np.where(np.isnan(rows[..., 4:5]), np.nan, 0)], 2)


def per_image(found: Any, images: int, by: str) -> list[Boxes]:
    """What was found, image by image, checked; boxes and scores that are not finite left out.

    Args:
        found: for every image a dict of boxes (n, 4), scores (n,) and labels (n,), or one such dict
            of tensors of all images.
        images: how many were looked at.
        by: what returned it, for messages.

    Raises:
        ConfigError: it is something else.
    """
    if isinstance(found, Mapping):
        whole = cast("Mapping[str, Any]", found)
        _check_keys(whole, by)
        lengths = {len(whole[name]) for name in _FOUND}
        if lengths != {images}:
            raise ConfigError(f"{by} returned boxes of {lengths} images for {images}: {_FORM}")
        found = [{name: whole[name][i] for name in _FOUND} for i in range(images)]
    if not isinstance(found, list | tuple):
        raise ConfigError(f"{by} returned a {type(found).__name__}: it must return {_FORM}")
    each = cast("Sequence[Any]", found)
    if len(each) != images:
        raise ConfigError(f"{by} returned {len(each)} values for {images} images: return {_FORM}")
    return [_checked(one, by) for one in each]


def _check_keys(one: Mapping[str, Any], by: str) -> None:
    missing = [name for name in _FOUND if name not in one]
    if missing:
        has = ", ".join(map(str, one)) or "nothing"
        raise ConfigError(
            f"{by} returned no {' and no '.join(missing)} (but {has}): it must return {_FORM}"
        )


def _checked(one: Any, by: str) -> Boxes:
    if not isinstance(one, Mapping):
        raise ConfigError(f"{by} returned a {type(one).__name__} for an image: return {_FORM}")
    given = cast("Mapping[str, Any]", one)
    _check_keys(given, by)
    values = {name: torch.as_tensor(given[name]).detach().cpu() for name in _FOUND}
    count = len(values["scores"]) if values["scores"].ndim else 0
    for name, dimensions in _FOUND.items():
        shape = tuple(values[name].shape)
        if shape != ((count, 4) if dimensions == 2 else (count,)):
            raise ConfigError(f"{by} returned {name} of {shape} for an image: return {_FORM}")
    boxes, scores = values["boxes"].float(), values["scores"].float()
    sound = boxes.isfinite().all(1) & scores.isfinite()
    return {
        "boxes": boxes[sound], "scores": scores[sound], "labels": values["labels"][sound].long(),
    }  # fmt: skip
