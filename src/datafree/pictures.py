"""Picture files, decoded to 8 bits a channel; nothing that people would not see is made of them.

Six formats are opened and no others: Pillow knows forty, some of which start other programs
(Ghostscript for an EPS, whatever the file is called). 16 bits are scaled to 8; pictures of numbers
without a known white (32 bits, floats) and those of several frames are refused.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datafree.bounds import check_ordinary, first_line
from datafree.errors import DataError

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "TIFF")
"""What is opened, by Pillow's names; PPM includes PGM and PBM."""
MOST_PIXELS = 2**26
"""Of one picture: 8192 x 8192. A file of some kB can claim thousands of times as many."""
_DEFLATES = 1032
"""So many bytes become one at most; a pixel of a PNG takes at least a bit."""
_EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_NUMBERS = ("L", "P", *_SIXTEEN_BITS, "I")
"""Kinds of picture that hold one number for every pixel."""
_BYTE_STEPS = 257  # 65535 is 255 of these


def read_picture(file: Path, channels: int) -> NDArray[np.uint8]:
    """The picture in `file`.

    Args:
        file: of one of `FORMATS`.
        channels: 1 is grey, 3 is red, green, blue. Transparency is left out, as in training.

    Returns:
        (H, W) where `channels` is 1, (H, W, 3) otherwise.

    Raises:
        DataError: it is no such picture, damaged, too large, of several frames, or of numbers whose
            white is not known.
    """
    with _Opened(file) as picture:
        if picture.mode in _SIXTEEN_BITS or (picture.mode == "I" and picture.format != "TIFF"):
            grey = _scaled(np.array(picture), file)
            return grey if channels == 1 else np.repeat(grey[..., None], 3, 2)
        if picture.mode not in _EIGHT_BITS:
            raise DataError(
                f"{file} is a picture of mode {picture.mode}, whose black and white are not known:"
                " save it with 8 or 16 bits a channel"
            )
        if "transparency" in picture.info and picture.mode != "RGB":
            picture = picture.convert("RGBA")
        return np.array(picture.convert("L" if channels == 1 else "RGB"))


def read_numbers(file: Path, size: tuple[int, int]) -> NDArray[np.int32]:
    """One number for every pixel of the picture in `file`, (H, W), as it stands there.

    Args:
        file: grey, or of a palette, whose places are the numbers.
        size: height and width it must have.

    Raises:
        DataError: as `read_picture`, or it has another size or more than one number a pixel.
    """
    with _Opened(file) as picture:
        _check_size(picture, file, size)
        if picture.mode not in _NUMBERS:
            raise DataError(
                f"{file} is a {picture.mode} picture: a map has one number for every pixel, its"
                " class"
            )
        return np.array(picture).astype(np.int32)


def check_picture(file: Path, size: tuple[int, int]) -> None:
    """Refuse a picture of another height and width than `size`, without decoding it.

    Raises:
        DataError: it has, or cannot be opened.
    """
    with _Opened(file) as picture:
        _check_size(picture, file, size)


class _Opened:
    """A picture that is open for a while; everything that goes wrong then is a `DataError`."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.picture: Any = None
        self.quiet = warnings.catch_warnings()

    def __enter__(self) -> Any:
        from PIL import Image

        self.quiet.__enter__()
        # Of damaged parts that do no harm, and of size, which is looked at here.
        warnings.simplefilter("ignore")
        try:
            check_ordinary(self.file)
            self.picture = Image.open(self.file, formats=FORMATS)
            self._check()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self.picture

    def __exit__(self, kind: Any, error: BaseException | None, trace: object) -> None:
        if self.picture is not None:
            self.picture.close()
        self.quiet.__exit__(kind, error, None)
        if isinstance(error, Exception) and not isinstance(error, DataError):
            raise DataError(self._told(error)) from None

    def _check(self) -> None:
        width, height = self.picture.size
        if width * height > MOST_PIXELS:
            raise DataError(
                f"cannot read picture {self.file}: it claims {width}x{height} pixels, and"
                f" {MOST_PIXELS} are the most"
            )
        size = self.file.stat().st_size
        if self.picture.format == "PNG" and width * height > 8 * _DEFLATES * size:
            raise DataError(
                f"cannot read picture {self.file}: it claims {width}x{height} pixels, more than"
                f" {size} bytes can hold"
            )
        # Photographs of some cameras hold a small second one (MPO); the first is the photograph.
        if self.picture.format != "MPO" and self._has_more():
            raise DataError(f"{self.file} holds several pictures: save the one that is meant")

    def _has_more(self) -> bool:
        if self.picture.format != "TIFF":
            return getattr(self.picture, "n_frames", 1) > 1
        try:
            self.picture.seek(1)
        except EOFError:
            self.picture.seek(0)
            return False
        return True

    def _told(self, error: Exception) -> str:
        from PIL import Image, UnidentifiedImageError

        reason = first_line(error)
        if isinstance(error, UnidentifiedImageError):
            reason = f"it is none of {', '.join(FORMATS)}"
        elif isinstance(error, Image.DecompressionBombError):
            reason = f"it claims more than {MOST_PIXELS} pixels"
        return f"cannot read picture {self.file}: {reason}"


def _check_size(picture: Any, file: Path, size: tuple[int, int]) -> None:
    width, height = picture.size
    if (height, width) != size:
        raise DataError(
            f"{file} has {height}x{width} pixels, the network takes {size[0]}x{size[1]}: where"
            " every pixel has a class sizes must be the same"
        )


def _scaled(values: NDArray[Any], file: Path) -> NDArray[np.uint8]:
    """Values of 16 bits as 8 bits: 0 is black and 65535 white."""
    if values.size and (values.min() < 0 or values.max() > 255 * _BYTE_STEPS):
        raise DataError(f"{file} holds numbers beyond 16 bits: save it with 8 or 16 bits a channel")
    wide = values.astype(np.uint32)
    return ((wide + _BYTE_STEPS // 2) // _BYTE_STEPS).astype(np.uint8)
