from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datafree.config import InputSpec
from datafree.data import open_labelled
from datafree.errors import DataError

SPEC = InputSpec(shape=(3, 4, 6), mean=(0.0,) * 3, std=(1.0,) * 3, classes=3)


def folder(place: Path) -> Path:
    """Two pictures; the map of the first has a palette."""
    for name in ("images", "labels"):
        (place / name).mkdir()
    for index in range(2):
        Image.fromarray(np.full((4, 6, 3), index, np.uint8)).save(place / f"images/{index}.bmp")
        made = Image.fromarray(np.full((4, 6), index + 1, np.uint8))
        if index == 0:
            made.putpalette([0, 0, 0, 200, 10, 10])
        made.save(place / "labels" / f"{index}.png")
    Image.new("RGB", (9, 9)).save(place / "images" / "without_a_map.bmp")
    return place


def test_pictures_and_their_maps(tmp_path: Path) -> None:
    data = open_labelled(folder(tmp_path), SPEC, labelled="maps")
    assert data.labels.shape == (2, 4, 6)
    assert [one.unique().tolist() for one in data.labels] == [[1], [2]]
    assert data.source.read(np.array([1, 0]))[:, 0, 0, 0].tolist() == [1, 0]


def test_mistakes(tmp_path: Path) -> None:
    place = folder(tmp_path)
    Image.new("RGB", (6, 4)).save(place / "labels" / "1.png")
    with pytest.raises(DataError, match=r"1\.png is a RGB picture: a map has one number"):
        open_labelled(place, SPEC, labelled="maps")
    Image.new("L", (4, 6)).save(place / "labels" / "1.png")
    with pytest.raises(DataError, match="has 6x4 pixels, the network takes 4x6"):
        open_labelled(place, SPEC, labelled="maps")
    (place / "labels" / "1.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot read"):
        open_labelled(place, SPEC, labelled="maps")
    (place / "images" / "0.bmp").unlink()
    with pytest.raises(DataError, match="no picture for 1 maps, the first is '0'"):
        open_labelled(place, SPEC, labelled="maps")
    for file in (place / "labels").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"holds no \.png"):
        open_labelled(place, SPEC, labelled="maps")
