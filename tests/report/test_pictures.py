"""Pictures inside a page are the images."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from datafree.config import InputSpec
from datafree.images import SyntheticSet
from datafree.report.pictures import pictures


def images(channels: int, side: int, count: int = 2) -> SyntheticSet:
    spec = InputSpec(
        shape=(channels, side, side), mean=(0.4,) * channels, std=(0.2,) * channels, classes=3
    )
    return SyntheticSet(torch.randn(count, channels, side, side), spec)


def decoded(uri: str) -> Image.Image:
    kind, _, data = uri.partition(";base64,")
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert kind == f"data:image/{str(picture.format).lower()}"
    return picture


@pytest.mark.parametrize("channels", [1, 3])
def test_small_pictures_are_the_pixels(channels: int) -> None:
    given = images(channels, 8)
    for picture, pixels in zip(pictures(given), given.pixels(), strict=True):
        shown = np.asarray(decoded(picture.uri))
        assert np.array_equal(shown.reshape(pixels.shape), pixels.numpy())
        assert (picture.width, picture.height) == (8, 8)


def test_large_pictures_are_made_smaller() -> None:
    (picture,) = pictures(images(3, 224, 1))
    assert decoded(picture.uri).size == (96, 96)
    assert len(picture.uri) < 20_000


@pytest.mark.parametrize("channels", [2, 5])
def test_other_numbers_of_channels_are_shown_as_far_as_eyes_go(channels: int) -> None:
    (picture,) = pictures(images(channels, 8, 1))
    assert decoded(picture.uri).mode == ("L" if channels == 2 else "RGB")


def test_pictures_say_what_the_network_takes_them_for() -> None:
    logits = torch.tensor([[0.0, 0.0, 2.0], [9.0, 0.0, 0.0]])
    first, second = pictures(images(1, 8), logits)
    assert first.caption == "class 2, 79 %"
    assert second.text == "Synthetic image 2: the float network says class 0, 100 %"
    named, _ = pictures(images(1, 8), logits, ["cat", "dog", "<b>"])
    assert named.caption == "<b>, 79 %"
    assert pictures(images(1, 8))[0].text == "Synthetic image 1"


def test_a_page_is_not_filled_with_pictures() -> None:
    assert len(pictures(images(1, 8, 100))) == 40
    assert pictures(SyntheticSet.none(images(1, 8).spec)) == []
