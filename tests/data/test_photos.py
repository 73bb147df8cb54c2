"""Pictures of anything in the form of a network."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datafree.config import InputSpec
from datafree.data.photos import check_photos, photos_in
from datafree.errors import DataError

COLOUR = InputSpec(shape=(3, 8, 8), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), classes=2)
GREY = InputSpec(shape=(1, 8, 8), mean=(0.0,), std=(1.0,), classes=2)
RNG = np.random.default_rng(0)


def archive(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
    return path


def test_grey_becomes_colour_and_colour_grey(tmp_path: Path) -> None:
    grey = RNG.integers(0, 256, (5, 8, 8), dtype=np.uint8)
    found = photos_in(archive(tmp_path / "a.npz", images=grey), COLOUR, 5, 0)
    expected = torch.from_numpy(grey).float()[:, None].expand(-1, 3, -1, -1) / 255
    assert torch.allclose(found.images, (expected - 0.5) / 0.5)
    colours = RNG.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    found = photos_in(archive(tmp_path / "b.npz", images=colours), GREY, 5, 0)
    luma = (colours * np.array([0.299, 0.587, 0.114])).sum(-1)
    assert np.abs(found.images[:, 0].numpy() * 255 - luma).max() <= 0.501
    assert found.targets is None
    assert found.metadata == {"method": "photos", "source": "b.npz", "seed": 0}


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (3, 8), (8, 5), (40, 9), (9, 9), (1, 1)])
def test_any_size_covers_the_input(rows: int, columns: int, tmp_path: Path) -> None:
    """A picture of one value stays that value, wherever it is enlarged, shrunk or cut."""
    plain = np.full((1, rows, columns, 3), 100, np.uint8)
    found = photos_in(archive(tmp_path / "a.npz", images=plain), COLOUR, 1, 0)
    assert found.images.shape == (1, 3, 8, 8)
    assert torch.allclose(found.images, torch.tensor((100 / 255 - 0.5) / 0.5))


def test_a_picture_twice_as_small_is_doubled_and_cut_in_the_middle(tmp_path: Path) -> None:
    halves = np.zeros((1, 4, 8), np.uint8)
    halves[:, :, 4:] = 255  # the middle of the columns stays the middle
    found = photos_in(archive(tmp_path / "a.npz", images=halves), GREY, 1, 0).images[0, 0]
    assert found.shape == (8, 8)
    assert bool((found[:, 0] == 0).all())
    assert bool((found[:, -1] == 1).all())
    assert torch.allclose(found + found.flip(1), torch.ones(8, 8), atol=2 / 255)


def test_folders_and_draws(tmp_path: Path) -> None:
    folder = tmp_path / "pictures" / "below"
    folder.mkdir(parents=True)
    for value in range(6):
        Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(folder / f"{value}.png")
    (folder / "labels.csv").write_text("filename,class_index\nnowhere.png,99\n")  # not looked at
    found = photos_in(tmp_path / "pictures", GREY, 4, 0).images
    assert len(found) == 4
    assert len({float(image.mean()) for image in found}) == 4
    assert torch.equal(found, photos_in(tmp_path / "pictures", GREY, 4, 0).images)
    assert not torch.equal(found, photos_in(tmp_path / "pictures", GREY, 4, 1).images)
    check_photos(tmp_path / "pictures", GREY, 6)
    for drawn in (check_photos, partial(photos_in, seed=0)):
        with pytest.raises(DataError, match=r"7 photos are asked for, and .* holds 6: lower"):
            drawn(tmp_path / "pictures", GREY, 7)


def test_what_is_no_photo_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no"):
        photos_in(tmp_path / "nowhere", GREY, 1, 0)
    with pytest.raises(DataError, match="holds no pictures"):
        photos_in(tmp_path, GREY, 1, 0)
    text = tmp_path / "a.txt"
    text.write_text("no")
    with pytest.raises(DataError, match=r"no \.npz file"):
        photos_in(text, GREY, 1, 0)
    floats = archive(tmp_path / "a.npz", images=np.zeros((2, 8, 8), np.float32))
    with pytest.raises(DataError, match="must be uint8"):
        photos_in(floats, GREY, 1, 0)
    other = archive(tmp_path / "b.npz", pixels=np.zeros((2, 8, 8), np.uint8))
    with pytest.raises(DataError, match="no array called images: pixels"):
        photos_in(other, GREY, 1, 0)
    empty = archive(tmp_path / "c.npz", images=np.zeros((0, 8, 8), np.uint8))
    with pytest.raises(DataError, match="holds no images"):
        photos_in(empty, GREY, 1, 0)
    with pytest.raises(DataError, match="takes no picture"):
        photos_in(other, InputSpec(shape=(2, 8, 8), mean=(0, 0), std=(1, 1), classes=2), 1, 0)
