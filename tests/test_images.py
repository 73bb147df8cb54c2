from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from datafree.config import InputSpec
from datafree.errors import DataError
from datafree.images import SyntheticSet
from networks import SPEC, images


def test_a_set_is_a_dataset() -> None:
    targets = torch.arange(5)
    data = SyntheticSet(images(5), SPEC, targets)
    assert len(data) == 5
    assert torch.equal(data[3][0], images(5)[3])
    assert data[3][1] == 3
    batches = list(DataLoader(data, batch_size=2))
    assert [tuple(batch[0].shape) for batch in batches] == [
        (2, 3, 8, 8),
        (2, 3, 8, 8),
        (1, 3, 8, 8),
    ]
    assert torch.cat([batch[1] for batch in batches]).tolist() == [0, 1, 2, 3, 4]
    assert len(SyntheticSet(images(5), SPEC)[0]) == 1


def test_batches_and_subset() -> None:
    data = SyntheticSet(images(5), SPEC, torch.arange(5), {"seed": 1})
    assert torch.equal(torch.cat(list(data.batches(2))), images(5))
    part = data.subset(3)
    assert torch.equal(part.images, images(5)[:3])
    assert part.targets is not None
    assert part.targets.tolist() == [0, 1, 2]
    assert part.metadata == {"seed": 1}


def test_the_digest_tells_sets_apart() -> None:
    base = SyntheticSet(images(4), SPEC)
    nearly = images(4)
    nearly[3, 2, 7, 7] += 1e-6
    others = [
        SyntheticSet(nearly, SPEC),
        SyntheticSet(images(4).flip(0), SPEC),
        SyntheticSet(images(4), SPEC, torch.arange(4)),
        SyntheticSet(images(4), SPEC, torch.arange(4).flip(0)),
        SyntheticSet(images(4).view(4, 3, 4, 16), SPEC.model_copy(update={"shape": (3, 4, 16)})),
    ]
    digests = {base.digest(), *(other.digest() for other in others)}
    assert len(digests) == 6
    strided = images(4).to(memory_format=torch.channels_last)
    assert SyntheticSet(strided, SPEC).digest() == base.digest()


@pytest.mark.parametrize("targets", [None, torch.tensor([3, 1, 2])])
def test_a_file_holds_everything(tmp_path: Path, targets: torch.Tensor | None) -> None:
    metadata = {
        "method": "zeroq",
        "loss": 0.25,
        "margin": None,
        "seed": 2**61,
        "nested": {"a": [1]},
    }
    data = SyntheticSet(images(3).to(memory_format=torch.channels_last), SPEC, targets, metadata)
    data.save(tmp_path / "set.safetensors")
    loaded = SyntheticSet.load(tmp_path / "set.safetensors")
    assert torch.equal(loaded.images, data.images)
    assert loaded.spec == SPEC
    assert loaded.metadata == metadata
    assert loaded.digest() == data.digest()
    assert (loaded.targets is None) == (targets is None)


def test_files_that_are_no_set(tmp_path: Path) -> None:
    foreign, damaged = tmp_path / "foreign.safetensors", tmp_path / "damaged.safetensors"
    save_file({"images": images(1)}, foreign)
    with pytest.raises(DataError, match="not an image set"):
        SyntheticSet.load(foreign)
    SyntheticSet(images(2), SPEC).save(damaged)
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot read image set"):
        SyntheticSet.load(damaged)
    with pytest.raises(DataError, match="cannot read image set"):
        SyntheticSet.load(tmp_path / "none.safetensors")


def test_images_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="do not fit"):
        SyntheticSet(torch.zeros(2, 3, 8, 9), SPEC)
    with pytest.raises(DataError, match="do not fit"):
        SyntheticSet(torch.zeros(3, 8, 8), SPEC)
    with pytest.raises(DataError, match="3 targets for 2 images"):
        SyntheticSet(images(2), SPEC, torch.arange(3))
    for bad in (float("nan"), float("inf")):
        broken = images(2)
        broken[1, 2, 3, 4] = bad
        with pytest.raises(DataError, match="NaN or infinite"):
            SyntheticSet(broken, SPEC)


def test_pixels_undo_the_normalisation() -> None:
    rng = np.random.default_rng(0)
    original = rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    normalised = (original / 255 - np.array(SPEC.mean)) / np.array(SPEC.std)
    data = SyntheticSet(torch.tensor(normalised, dtype=torch.float32).permute(0, 3, 1, 2), SPEC)
    assert data.pixels().dtype == torch.uint8
    np.testing.assert_array_equal(data.pixels().numpy(), original)


def test_pixels_are_clipped() -> None:
    data = SyntheticSet(torch.full((1, 3, 8, 8), 100.0), SPEC)
    assert data.pixels().unique().tolist() == [255]
    assert SyntheticSet(-data.images, SPEC).pixels().unique().tolist() == [0]


def test_a_grid_shows_every_image_enlarged(tmp_path: Path) -> None:
    """8-pixel tiles become 64 pixels: 2 columns and 2 rows, 2 pixels apart."""
    data = SyntheticSet(images(3), SPEC)
    data.save_grid(tmp_path / "grid.png", columns=2)
    with Image.open(tmp_path / "grid.png") as file:
        assert file.mode == "RGB"
        picture = np.asarray(file)
    assert picture.shape == (2 * 66 + 2, 2 * 66 + 2, 3)
    for index, (top, left) in enumerate([(2, 2), (2, 68), (68, 2)]):
        tile = picture[top : top + 64, left : left + 64]
        np.testing.assert_array_equal(tile[::8, ::8], data.pixels()[index].numpy())
        np.testing.assert_array_equal(tile[7::8, 7::8], data.pixels()[index].numpy())
    assert (picture[68:, 68:] == 255).all()


def test_grids_of_grey_and_of_many_images(tmp_path: Path) -> None:
    grey = InputSpec(shape=(1, 70, 8), mean=(0,), std=(1,), classes=2)
    data = SyntheticSet(images(5, shape=grey.shape), grey)
    data.save_grid(tmp_path / "grid.png", columns=4, limit=3)
    with Image.open(tmp_path / "grid.png") as file:
        assert file.mode == "L"
        assert file.size == (3 * 10 + 2, 72 + 2)


def test_a_set_fits_other_networks_of_its_shape() -> None:
    data = SyntheticSet(images(5), SPEC, torch.arange(5))
    assert data.fitted(SPEC).digest() == data.digest()
    assert data.fitted(SPEC, 2).digest() == data.subset(2).digest()
    other = SPEC.model_copy(update={"mean": (0.0, 0.1, 0.2), "std": (1.0, 0.5, 0.1), "classes": 9})
    moved = data.fitted(other)
    assert moved.spec == other
    assert torch.equal(moved.pixels(), data.pixels())
    with pytest.raises(DataError, match="5 images, and 6 are wanted"):
        data.fitted(SPEC, 6)
    with pytest.raises(DataError, match="the network takes"):
        data.fitted(SPEC.model_copy(update={"shape": (3, 4, 16)}))
