from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datafree.config import InputSpec
from datafree.data import open_labelled
from datafree.detection import boxes_of
from datafree.errors import DataError

SPEC = InputSpec(shape=(3, 20, 40), mean=(0.5, 0.0, 1.0), std=(1.0, 1.0, 1.0), classes=1)


def content(**changes: Any) -> dict[str, Any]:
    """Two pictures, 20 wide and 40 high; boxes on the second only."""
    images = [{"id": i, "file_name": f"{i}.png", "width": 20, "height": 40} for i in (5, 3)]
    boxes = [
        {"id": 1, "image_id": 3, "category_id": 7, "bbox": [2, 4, 10, 20], "iscrowd": 0},
        {"id": 2, "image_id": 3, "category_id": 2, "bbox": [0, 0, 20.0, 40], "iscrowd": 1},
        {"id": 3, "image_id": 3, "category_id": 2, "bbox": [1, 1, 0, 3]},  # no area
    ]
    kinds = [{"id": 2, "name": "cat"}, {"id": 7, "name": "dog"}]
    return {"images": images, "annotations": boxes, "categories": kinds, **changes}


def written(folder: Path, told: Any, pictures: str = ".") -> Path:
    (folder / pictures).mkdir(parents=True, exist_ok=True)
    for index in (5, 3):
        pixels = np.full((40, 20, 3), 10 * index, np.uint8)
        Image.fromarray(pixels).save(folder / pictures / f"{index}.png")
    path = folder / "boxes.json"
    path.write_text(json.dumps(told), encoding="utf-8")
    return path


def test_pictures_keep_their_form_and_boxes_move_with_them(tmp_path: Path) -> None:
    """40 high becomes 20, so 20 wide becomes 10; the rest of the 40 is the mean colour."""
    data = open_labelled(written(tmp_path, content()), SPEC, labelled="boxes")
    assert data.boxed and len(data) == 2
    none, one = boxes_of(data.labels)
    assert none["boxes"].shape == (0, 4)
    assert one["boxes"].tolist() == [[1, 2, 6, 12], [0, 0, 10, 20]]
    assert one["labels"].tolist() == [7, 2] and one["iscrowd"].tolist() == [False, True]
    pixels = data.source.read(np.array([0, 1]))
    assert pixels.shape == (2, 3, 20, 40)
    assert torch.equal(pixels[:, :, :, :10].amax((1, 2, 3)), torch.tensor([50, 30]).byte())
    assert pixels[0, :, 0, 10:].unique(dim=1).tolist() == [[128], [0], [255]]
    assert data.take(np.array([0]))[0, 0, 0, 39] == pytest.approx(0, abs=0.003)


def test_stretched(tmp_path: Path) -> None:
    path = written(tmp_path, content())
    data = open_labelled(path, SPEC, labelled="boxes", stretch=True)
    one = boxes_of(data.labels)[1]
    assert one["boxes"].tolist() == [[4, 2, 24, 12], [0, 0, 40, 20]]
    assert torch.equal(data.source.read(np.array([1])), torch.full((1, 3, 20, 40), 30).byte())


@pytest.mark.parametrize("pictures", [".", "images", "../val2017"])
def test_pictures_are_found_beside_the_file(tmp_path: Path, pictures: str) -> None:
    path = written(tmp_path / "annotations", content(), pictures)
    assert len(open_labelled(path, SPEC, labelled="boxes")) == 2


def test_a_folder_and_a_limit(tmp_path: Path) -> None:
    written(tmp_path, content())
    data = open_labelled(tmp_path, SPEC, 1, labelled="any")
    assert len(data) == 1 and data.boxed
    (tmp_path / "more.json").write_text("{}")
    with pytest.raises(DataError, match=r"2 JSON files \(boxes.json, more.json\)"):
        open_labelled(tmp_path, SPEC, labelled="boxes")


def changed(part: str, **fields: Any) -> dict[str, Any]:
    told = content()
    told[part][0] = {**told[part][0], **fields}
    return told


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ([], "no JSON file of labelled boxes"),
        ({"images": []}, "no JSON file of labelled boxes"),
        (content(images=[]), "lists no images"),
        (changed("images", file_name="6.png"), "there is no picture '6.png' beside"),
        (changed("images", width="wide"), "width of the image 5.png must be a whole number"),
        (changed("annotations", image_id=9), "annotation 1 is of image 9, which is not listed"),
        (changed("annotations", category_id=1), "of category 1, which is not listed"),
        (changed("annotations", bbox=[1, 2, 3]), r"must have bbox: left, top, width, height"),
        (changed("annotations", bbox=None), "got None"),
    ],
)
def test_mistakes(tmp_path: Path, told: Any, message: str) -> None:
    folder = tmp_path / "set" / "annotations"  # pictures of other tests lie beside tmp_path
    with pytest.raises(DataError, match=message):
        open_labelled(written(folder, told), SPEC, labelled="boxes")


def test_files_that_are_not_what_is_told(tmp_path: Path) -> None:
    path = written(tmp_path, changed("images", height=41))
    data = open_labelled(path, SPEC, labelled="boxes")
    with pytest.raises(DataError, match="20 wide and 40 high, and its JSON file says 20 and 41"):
        data.source.read(np.array([0]))
    (tmp_path / "3.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="cannot read picture"):
        data.source.read(np.array([1]))
    (tmp_path / "3.png").unlink()
    with pytest.raises(DataError, match="lists 1 pictures that are not in"):
        open_labelled(path, SPEC, labelled="boxes")
    path.write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="cannot read"):
        open_labelled(path, SPEC, labelled="boxes")
    with pytest.raises(DataError, match="measure with metric map"):
        open_labelled(path, SPEC, labelled="classes")
