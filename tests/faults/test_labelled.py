"""Labelled data of strangers: arrays that claim too much, names that lead elsewhere."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bounded import refused, within
from PIL import Image

from datafree.config import InputSpec
from datafree.data import open_labelled
from datafree.errors import DataError

RGB = InputSpec(shape=(3, 8, 8), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5), classes=10)
VALUES = {"name": "x", "shape": (4,), "kind": "values", "mean": (0.0,) * 4, "std": (1.0,) * 4}
TABLE = InputSpec(
    shape=(4, 1, 1), mean=(0.0,) * 4, std=(1.0,) * 4, classes=3,
    inputs=(VALUES,),  # pyright: ignore[reportArgumentType]
)  # fmt: skip
LABELS = np.arange(5)


def opened(path: Path, spec: InputSpec = RGB, **options: Any) -> list[Any]:
    return list(open_labelled(path, spec, **options).batches(8))


def refusal(path: Path, spec: InputSpec = RGB, **options: Any) -> str:
    return refused(lambda: opened(path, spec, **options), DataError)


def header(shape: str, descr: str = "|u1", order: str = "False") -> bytes:
    """Of an .npy file, with whatever shape."""
    text = f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def archive(path: Path, images: bytes, how: int = zipfile.ZIP_DEFLATED) -> Path:
    labels = io.BytesIO()
    np.save(labels, LABELS)
    with zipfile.ZipFile(path, "w", how) as file:
        file.writestr("images.npy", images)
        file.writestr("labels.npy", labels.getvalue())
    return path


@pytest.mark.parametrize(
    "shape",
    ["(1000000000000, 8, 8, 3)", "(5, 1000000, 1000000, 3)", "(5, 8, 8, 4)", "(5, 8, 8)",
     "(-5, 8, 8, -3)", f"({10**30}, {10**30}, 8, 3)"],
)  # fmt: skip
def test_a_header_that_claims_more_than_there_is(tmp_path: Path, shape: str) -> None:
    path = archive(tmp_path / "x.npz", header(shape) + bytes(5 * 8 * 8 * 3))
    assert "it claims " in refusal(path)


@pytest.mark.parametrize("shape", ["5, 8", "'a'", "(5.0, 8, 8, 3)", "(None,)", "[" * 3000, "x()"])
def test_a_header_that_is_none(tmp_path: Path, shape: str) -> None:
    path = archive(tmp_path / "x.npz", header(shape) + bytes(960))
    assert f"cannot read {path}: images: " in refusal(path)


def test_an_archive_that_expands(tmp_path: Path) -> None:
    """4 GB of zeros in 4 MB."""
    path = tmp_path / "bomb.npz"
    count, block = 64, bytes(2**26)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        with file.open("images.npy", "w", force_zip64=True) as member:
            member.write(header(f"({count * 2**26 // 192}, 8, 8, 3)"))
            for _ in range(8):
                member.write(block)
        file.writestr("labels.npy", b"")
    assert "expand to" in refusal(path)


def test_a_directory_that_claims_terabytes(tmp_path: Path) -> None:
    """Header and directory of the archive agree on a size that is not there."""
    size = 3_000_000_000
    images = header(f"({size // 192}, 8, 8, 3)")
    path = archive(tmp_path / "x.npz", images, zipfile.ZIP_STORED)
    whole = bytearray(path.read_bytes())
    at = whole.index(b"PK\x01\x02")
    whole[at + 24 : at + 28] = (size + len(images)).to_bytes(4, "little")
    path.write_bytes(whole)
    assert "expand to" in refusal(path)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.array([{"a": 1}] * 5, dtype=object), "it holds objects"),
        (np.zeros(5, dtype=[("a", "u1", (8, 8, 3))]), "only plain numbers are read"),
        (np.zeros((5, 8, 8, 3), dtype="M8[s]"), "only plain numbers are read"),
        (np.zeros((5, 8, 8, 3), dtype="c8"), "only plain numbers are read"),
        (np.zeros((5, 8, 8, 3), dtype="U3"), "only plain numbers are read"),
        (np.zeros((5, 8, 8, 3), dtype=np.longdouble), "only plain numbers are read"),
        (np.zeros((5, 8, 8, 3), dtype=np.float16), "must be uint8"),
        (np.full((5, 8, 8, 3), np.nan), "must be uint8"),
        (np.zeros((0, 8, 8, 3), np.uint8), "holds no images"),
        (np.zeros((5, 0, 8, 3), np.uint8), "holds no images"),
        (np.zeros((), np.uint8), "must be uint8 of shape"),
    ],
)
def test_arrays_of_other_kinds(tmp_path: Path, images: Any, said: str) -> None:
    np.savez(tmp_path / "x.npz", images=images, labels=LABELS)
    assert said in refusal(tmp_path / "x.npz")


def test_orders_of_bytes_and_axes_do_not_matter(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "plain.npz", images=images, labels=LABELS)
    np.savez(tmp_path / "other.npz", images=np.asfortranarray(images), labels=LABELS.astype(">i2"))
    (plain,), (other,) = opened(tmp_path / "plain.npz"), opened(tmp_path / "other.npz")
    assert torch.equal(plain[0], other[0]) and torch.equal(plain[1], other[1])


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite(tmp_path: Path, value: float) -> None:
    values = np.zeros((5, 4))
    values[3, 1] = value
    np.savez(tmp_path / "x.npz", x=values, labels=np.zeros(5, int))
    assert "x in" in refusal(tmp_path / "x.npz", TABLE)


def test_values_of_half_precision_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.ones((5, 4), ">f2"), labels=np.zeros(5, int))
    ((batch, _),) = opened(tmp_path / "x.npz", TABLE)
    assert torch.equal(batch, torch.ones(5, 4, 1, 1))


@pytest.mark.parametrize("label", [-1, 10, 2**40, -(2**40)])
def test_classes_that_the_network_does_not_have(tmp_path: Path, label: int) -> None:
    images = np.zeros((2, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=np.array([0, label]))
    assert f"label {label} at index 1" in refusal(tmp_path / "x.npz")


def test_a_class_of_unsigned_64_bits_does_not_wrap(tmp_path: Path) -> None:
    images = np.zeros((1, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=np.array([2**64 - 1], np.uint64))
    assert f"label {2**64 - 1} at index 0" in refusal(tmp_path / "x.npz")


def folder(place: Path, name: str, number: str = "1") -> Path:
    place.mkdir(exist_ok=True)
    (place / "labels.csv").write_text(f"filename,class_index\n{name},{number}\n")
    return place


@pytest.mark.parametrize("name", ["../secret.png", "a/../../secret.png", "", "{}/secret.png"])
def test_names_that_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    path = folder(tmp_path / "data", name.format(tmp_path))
    assert "is no name of a file in" in refusal(path)
    coco = {
        "images": [{"id": 1, "file_name": name.format(tmp_path), "height": 8, "width": 8}],
        "annotations": [], "categories": [],
    }  # fmt: skip
    (tmp_path / "data" / "labels.csv").unlink()
    (tmp_path / "data" / "boxes.json").write_text(json.dumps(coco))
    said = refusal(tmp_path / "data" / "boxes.json", labelled="boxes")
    assert "is no name of a file in" in said or "there is no picture ''" in said


@pytest.mark.parametrize("name", ["link.png", "inner/secret.png"])
def test_links_that_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    path = folder(tmp_path / "data", name)
    target = tmp_path if "/" in name else tmp_path / "secret.png"
    (path / name.partition("/")[0]).symlink_to(target)
    assert "is a link that leads out of" in refusal(path)


def test_links_within_the_folder_are_followed(tmp_path: Path) -> None:
    path = folder(tmp_path / "data", "link.png")
    Image.new("RGB", (8, 8)).save(path / "real.png")
    (path / "link.png").symlink_to("real.png")
    (tmp_path / "linked").symlink_to(path)  # the folder itself may be one
    assert len(opened(path)) == len(opened(tmp_path / "linked")) == 1


@pytest.mark.parametrize("number", ["9" * 5000, "1e3", "0x1", "", "-", "nan", "٣"])
def test_class_numbers_that_are_none(tmp_path: Path, number: str) -> None:
    path = folder(tmp_path / "data", "x.png", number)
    Image.new("RGB", (8, 8)).save(path / "x.png")
    assert "line 2: class_index must be an integer" in refusal(path)


IMAGE = {"id": 1, "file_name": "x.png", "height": 8, "width": 8}
BOX = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2]}
LISTS = {"images": [IMAGE], "annotations": [BOX], "categories": [{"id": 1}]}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"images": [IMAGE | {"height": 10**400}]}, "height of the image x.png must be"),
        ({"images": [IMAGE | {"width": True}]}, "width of the image x.png must be"),
        ({"images": [IMAGE | {"id": [1]}]}, "id of an entry must be a whole number"),
        ({"categories": [{"id": 10**9}]}, "id of an entry must be a whole number"),
        ({"annotations": [BOX | {"image_id": [1]}]}, "which is not listed"),
        ({"annotations": [BOX | {"category_id": {}}]}, "which is not listed"),
        ({"annotations": [BOX | {"bbox": [0, 0, 10**400, 1]}]}, "must have bbox"),
        ({"annotations": [BOX | {"bbox": [0, 0, 1e308, 1]}]}, "must have bbox"),
        ({"annotations": [BOX | {"bbox": [0, 0, float("nan"), 1]}]}, "must have bbox"),
        ({"annotations": [BOX | {"bbox": [0, 0, "1", 1]}]}, "must have bbox"),
    ],
)
def test_coco_files_that_make_no_sense(tmp_path: Path, changed: Any, said: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    (tmp_path / "boxes.json").write_text(json.dumps(LISTS | changed))
    assert said in refusal(tmp_path / "boxes.json", labelled="boxes")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"images":' * 500 + "1" + "}" * 500, "[]", "x"])
def test_json_that_is_nested_or_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "boxes.json").write_text(text)
    assert "boxes.json" in refusal(tmp_path / "boxes.json", labelled="boxes")


def test_one_image_with_all_the_boxes(tmp_path: Path) -> None:
    """20,000 pictures and 20,000 boxes on one: a table of 10 GB from 3 MB."""
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    count = 20_000
    lists = LISTS | {
        "images": [IMAGE | {"id": index} for index in range(count)],
        "annotations": [BOX] * count,
    }
    (tmp_path / "boxes.json").write_text(json.dumps(lists))
    with within():
        path = tmp_path / "boxes.json"
        with pytest.raises(DataError, match="20000 boxes on one of 20000 images"):
            open_labelled(path, RGB, labelled="boxes")


@pytest.mark.parametrize("name", ["x.npz", "x.bin", "x.json", "data/labels.csv"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    (tmp_path / "data").mkdir()
    os.mkfifo(tmp_path / name)
    path = tmp_path / name
    refusal(path.parent if name.startswith("data") else path, labelled="classes")
