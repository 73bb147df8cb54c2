"""Photos of other things among the images of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import datafree
from datafree.config import RunConfig
from datafree.errors import ConfigError, DataError
from datafree.images import SyntheticSet

QUICK: dict[str, Any] = {
    "method": "noise", "images": 6, "export": False, "holdout": 0, "report": False,
    "latency": False, "device": "cpu",
}  # fmt: skip


def quick(**changes: Any) -> dict[str, Any]:
    return {**QUICK, **changes}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(5):
        pixels = rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def test_half_the_images_are_photos_in_random_order(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = datafree.quantize("digits_resnet8", photos=photos, output=out, **QUICK)
    assert len(result.images) == 6
    assert result.images.metadata["photos"] == {"source": "photos", "seed": 0, "count": 3}
    assert result.images.targets is None
    made = datafree.quantize("digits_resnet8", **quick(images=3)).images
    alone = datafree.quantize(
        "digits_resnet8", photos=photos, photo_share=1, **quick(images=3)
    ).images
    both = torch.cat([made.images, alone.images])
    found = {tuple(image.flatten().tolist()) for image in result.images.images}
    assert found == {tuple(image.flatten().tolist()) for image in both}
    assert not torch.equal(result.images.images, both)
    assert alone.metadata["method"] == "photos"
    told = " ".join(result.metrics["notes"])
    assert "3 of 6 images are photos" in told
    assert "not strictly data-free" in told
    assert SyntheticSet.load(out / "images.safetensors").metadata == result.images.metadata


def test_what_does_not_fit_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"10 photos are asked for, and .* holds 5"):
        datafree.quantize("digits_resnet8", photos=photos, **quick(images=20))
    with pytest.raises(DataError, match="nowhere"):
        datafree.quantize(
            "digits_resnet8", photos=tmp_path / "nowhere", output=tmp_path / "run", **QUICK
        )
    assert not (tmp_path / "run").exists()  # it was known before the run began
    with pytest.raises(ConfigError, match="photo_share goes with photos"):
        datafree.quantize("digits_resnet8", photo_share=0.3, **QUICK)
    with pytest.raises(ConfigError, match="dfqf dreams its own images: leave photos out"):
        datafree.quantize("digits_resnet8", photos=photos, training="dfqf", device="cpu")
    given = np.random.default_rng(0).random((4, 1, 8, 8)).astype(np.float32)
    with pytest.raises(ConfigError, match="images are given"):
        datafree.quantize("digits_resnet8", photos=photos, **quick(images=given))


def test_a_training_on_a_fixed_set_learns_on_photos_too(photos: Path) -> None:
    options: dict[str, Any] = {"iterations": 2, "batch_size": 4, "checks": 1}
    chosen = quick(training="fixed_set", training_options=options, bits="W4A4")
    result = datafree.quantize("digits_resnet8", photos=photos, **chosen)
    told = result.metrics["training"]["fine-tuning"]["learned_from"]
    assert told == {"images": 6, "method": "noise and photos"}
    assert "not strictly data-free" in " ".join(result.metrics["notes"])


@pytest.mark.parametrize(("share", "count"), [(0.5, 3), (0.01, 1), (1.0, 6), (0.34, 2)])
def test_the_share_is_rounded_and_never_nothing(share: float, count: int) -> None:
    config = RunConfig(model="digits_resnet8", images=6, photos=Path("x"), photo_share=share)
    assert config.photo_count == count
