from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from datafree.detection.boxes import boxes_of, from_rows, packed, per_image
from datafree.errors import ConfigError, DataError


def test_boxes_of_images_come_back() -> None:
    first = np.array([[0, 1, 2, 3, 7, 0], [4, 5, 6, 8, 9, 1]], np.float32)
    whole = packed([first, np.zeros((0, 6), np.float32)])
    assert whole.shape == (2, 2, 6)
    one, none = boxes_of(torch.from_numpy(whole))
    assert one["boxes"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 8]]
    assert one["labels"].tolist() == [7, 9] and one["iscrowd"].tolist() == [False, True]
    assert none["boxes"].shape == (0, 4) and none["labels"].tolist() == []


def test_rows_of_an_archive() -> None:
    rows = np.array([[[0, 0, 4, 4, 3], [0, 0, 0, 0, -1]]])
    (one,) = boxes_of(torch.from_numpy(from_rows(rows, "a.npz")))
    assert one["boxes"].tolist() == [[0, 0, 4, 4]] and one["labels"].tolist() == [3]
    with pytest.raises(DataError, match=r"right and\s+bottom must be larger"):
        from_rows(np.array([[[4.0, 0, 4, 4, 3]]]), "a.npz")
    with pytest.raises(DataError, match=r"must be boxes \(images, boxes, 5\)"):
        from_rows(np.zeros((3, 4)), "a.npz")


def found(count: int) -> dict[str, Any]:
    boxes = torch.arange(4.0).repeat(count, 1)
    return {"boxes": boxes, "scores": torch.ones(count), "labels": torch.arange(count)}


def test_a_list_and_a_dict_of_all_images_are_taken() -> None:
    whole = {name: torch.stack([value, value]) for name, value in found(3).items()}
    for given in ([found(3), found(3)], whole):
        first, second = per_image(given, 2, "decode")
        assert first["labels"].tolist() == second["labels"].tolist() == [0, 1, 2]


def test_what_is_not_finite_is_left_out() -> None:
    given = found(3)
    given["boxes"][0, 2], given["scores"][1] = torch.inf, torch.nan
    (one,) = per_image([given], 1, "decode")
    assert one["labels"].tolist() == [2] and one["boxes"].shape == (1, 4)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (torch.zeros(1, 3, 6), "returned a Tensor: it must return for every image a dict"),
        ([found(1)], "returned 1 values for 2 images"),
        ([found(1), [1]], "returned a list for an image"),
        ([found(1), {"boxes": torch.zeros(1, 4)}], "no scores and no labels"),
        ([found(1), {**found(1), "boxes": torch.zeros(1, 5)}], r"boxes of \(1, 5\)"),
        ([found(1), {**found(2), "labels": torch.zeros(1)}], r"labels of \(1,\)"),
        (found(2) | {"scores": torch.zeros(3)}, "boxes of"),
    ],
)
def test_something_else_is_refused(given: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        per_image(given, 2, "decode")
