"""The synthetic images as pictures inside a page, each with what the network takes it for."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from datafree.images import SyntheticSet

_SHOWN = 40
_LARGE = 96  # pixels; larger pictures are made smaller, and stored with losses


@dataclass(frozen=True)
class Picture:
    """One image.

    Attributes:
        uri: the picture itself, ``data:image/…``.
        text: what it shows, for who cannot see it.
        caption: what the network takes it for; empty where it names no classes.
        width: of the picture in pixels.
        height: likewise.
    """

    uri: str
    text: str
    caption: str
    width: int
    height: int


def pictures(
    images: SyntheticSet, logits: Tensor | None = None, names: list[str] | None = None
) -> list[Picture]:
    """The first images of a set.

    Args:
        images: of a network that takes a picture; otherwise nothing is shown.
        logits: (N, K) of the float network on them, K at least 2; or None.
        names: of the classes.
    """
    if images.spec.picture is None or not len(images):
        return []
    found: list[Picture] = []
    for index, pixels in enumerate(images.subset(_SHOWN).pixels()):
        caption = "" if logits is None else _taken_for(logits[index], names)
        text = f"Synthetic image {index + 1}"
        text += f": the float network says {caption}" if caption else ""
        picture = _picture(pixels)
        found.append(Picture(_uri(picture), text, caption, *picture.size))
    return found


def _taken_for(logits: Tensor, names: list[str] | None) -> str:
    """The likeliest class and how sure the network is."""
    sure, index = logits.softmax(0).max(0)
    name = f"class {int(index)}" if names is None else names[int(index)]
    return f"{name}, {100 * float(sure):.0f} %"


def _picture(pixels: Tensor) -> Image.Image:
    """(H, W, C) uint8 as grey or RGB, not larger than a page needs."""
    channels = pixels.shape[-1]
    array = pixels[..., 0] if channels < 3 else pixels[..., :3]
    picture = Image.fromarray(array.cpu().numpy())
    if max(picture.size) > _LARGE:
        picture.thumbnail((_LARGE, _LARGE))
    return picture


def _uri(picture: Image.Image) -> str:
    large = max(picture.size) >= _LARGE
    buffer = io.BytesIO()
    if large:
        picture.save(buffer, "JPEG", quality=85)
    else:
        picture.save(buffer, "PNG", optimize=True)
    kind = "jpeg" if large else "png"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
