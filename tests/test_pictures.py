"""Pictures of strangers: scaled rightly, or refused in one line."""

from __future__ import annotations

import os
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datafree.errors import DataError
from datafree.pictures import check_picture, read_numbers, read_picture

RAMP = np.arange(256, dtype=np.uint16).reshape(16, 16)


def complaint(file: Path, channels: int = 3) -> str:
    with pytest.raises(DataError) as caught:
        read_picture(file, channels)
    assert "\n" not in str(caught.value) and str(file) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.pgm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_become_eight(tmp_path: Path, name: str, channels: int) -> None:
    """The X-ray: every one of 256 levels comes back, not two of them."""
    Image.fromarray(RAMP * 257).save(tmp_path / name)
    got = read_picture(tmp_path / name, channels)
    assert got.dtype == np.uint8
    expected = RAMP if channels == 1 else np.stack([RAMP] * 3, 2)
    assert np.array_equal(got, expected)


def test_sixteen_bits_are_rounded_to_the_nearest_level(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (16, 16)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    expected = np.rint(values.astype(np.float64) / 65535 * 255)
    assert np.array_equal(read_picture(tmp_path / "x.png", 1), expected)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_numbers_without_a_known_white_are_refused(tmp_path: Path, dtype: Any) -> None:
    Image.fromarray(RAMP.astype(dtype)).save(tmp_path / "x.tif")
    assert "whose black and white are not known" in complaint(tmp_path / "x.tif")


@pytest.mark.parametrize("mode", ["1", "P", "LA", "PA", "RGBA", "CMYK", "L"])
def test_all_kinds_of_eight_bits_are_the_colours_they_show(tmp_path: Path, mode: str) -> None:
    name = "x.tif" if mode in ("CMYK", "PA") else "x.png"
    colours = {"1": (255, 255, 255), "L": (90, 90, 90), "LA": (90, 90, 90)}
    colour = colours.get(mode, (204, 51, 0))  # one of the web palette
    picture = Image.new("RGB", (9, 8), colour)
    if mode == "PA":
        picture = picture.convert("P")
    picture.convert(mode).save(tmp_path / name)
    got = read_picture(tmp_path / name, 3)
    assert got.shape == (8, 9, 3)
    assert np.abs(got.astype(int) - np.array(colour)).max() <= 1
    assert read_picture(tmp_path / name, 1).shape == (8, 9)


def test_a_palette_with_transparency_keeps_its_colours(tmp_path: Path) -> None:
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([0, 0, 0, 10, 200, 30])
    picture.save(tmp_path / "x.png", transparency=b"\x00\xff")
    assert read_picture(tmp_path / "x.png", 3)[0, 0].tolist() == [10, 200, 30]


def test_postscript_under_the_name_of_a_photograph_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"a program was started: {args}")

    monkeypatch.setattr(subprocess, "check_call", started)
    monkeypatch.setattr(subprocess, "Popen", started)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "x.jpg").write_bytes(eps)
    assert "it is none of PNG, JPEG, BMP, WEBP, PPM, TIFF" in complaint(tmp_path / "x.jpg")


@pytest.mark.parametrize("kind", ["GIF", "ICO", "TGA", "PCX", "SGI", "PDF", "ICNS", "JPEG2000"])
def test_no_other_format_is_opened(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "x.png", kind)
    assert "it is none of" in complaint(tmp_path / "x.png")


def png(width: int, height: int) -> bytes:
    """A PNG of some hundred bytes that claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 5000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(9000, 9000), (12000, 12000), (60000, 60000)])
def test_decompression_bombs(tmp_path: Path, size: tuple[int, int]) -> None:
    """Below what Pillow warns of, between that and what it refuses, and above."""
    (tmp_path / "x.png").write_bytes(png(*size))
    assert "67108864" in complaint(tmp_path / "x.png")
    with pytest.raises(DataError, match="67108864"):
        check_picture(tmp_path / "x.png", (8, 8))


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.bmp", "x.webp", "x.ppm", "x.tif"])
def test_truncated_pictures(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for share in (0.02, 0.3, 0.9):
        (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
        assert "cannot read picture" in complaint(tmp_path / name)


@pytest.mark.parametrize("name", ["x.png", "x.webp", "x.tif"])
def test_several_pictures_in_one_file(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (10, 250)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    assert "holds several pictures: save the one that is meant" in complaint(tmp_path / name)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    assert "it is no ordinary file" in complaint(tmp_path / "x.png")


def test_numbers_of_a_map_stay_as_they_are(tmp_path: Path) -> None:
    numbers = np.arange(64, dtype=np.uint16).reshape(8, 8) * 500
    Image.fromarray(numbers).save(tmp_path / "x.png")
    assert np.array_equal(read_numbers(tmp_path / "x.png", (8, 8)), numbers)
    with pytest.raises(DataError, match="8x8 pixels, the network takes 9x8"):
        read_numbers(tmp_path / "x.png", (9, 8))


def test_a_png_that_claims_more_than_its_bytes_can_hold_is_refused_unread(tmp_path: Path) -> None:
    """9 x 6,881,288 pixels of 150 bytes took seconds to decode; found by fuzzing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", 9, 0x690008, 16, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(100))), chunk(b"IEND", b""))
    file = tmp_path / "x.png"
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert "claims 9x6881288 pixels, more than" in complaint(file)


def test_a_png_of_one_colour_is_read_however_small_it_is(tmp_path: Path) -> None:
    Image.new("1", (4096, 4096)).save(tmp_path / "x.png", optimize=True)
    assert not read_picture(tmp_path / "x.png", 1).any()
