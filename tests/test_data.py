"""Labelled data in three layouts, and one clear line for everything that can be wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from datafree.config import InputSpec
from datafree.config.inputs import Input
from datafree.data import Labels, calibration_set, fit, open_labelled, real_images
from datafree.errors import DataError

Pixels = NDArray[np.uint8]
RGB = InputSpec(shape=(3, 8, 8), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5), classes=10)
GREY = InputSpec(shape=(1, 8, 8), mean=(0.5,), std=(0.25,), classes=10)
CIFAR = RGB.model_copy(update={"shape": (3, 32, 32)})


def pixels(*shape: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def npz(folder: Path, images: Any, labels: Any) -> Path:
    path = folder / "data.npz"
    np.savez(path, images=images, labels=labels)
    return path


def pictures(folder: Path, images: list[Pixels], labels: list[Any]) -> Path:
    lines = ["filename,class_index"]
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image).save(folder / f"{index}.png")
        lines.append(f"{index}.png,{label}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def complaint(path: Path, spec: InputSpec = RGB, read: bool = False) -> str:
    with pytest.raises(DataError) as caught:
        data = open_labelled(path, spec)
        if read:
            list(data.batches(4))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def normalised(images: Pixels, spec: InputSpec) -> torch.Tensor:
    scaled = (images.astype(np.float64) / 255 - np.array(spec.mean)) / np.array(spec.std)
    return torch.from_numpy(scaled.transpose(0, 3, 1, 2)).float()


def test_npz_is_normalised_and_in_order(tmp_path: Path) -> None:
    images, labels = pixels(5, 8, 8, 3), np.arange(5)
    data = open_labelled(npz(tmp_path, images, labels), RGB)
    batches = list(data.batches(2))
    assert len(data) == 5
    assert [len(batch) for batch, _ in batches] == [2, 2, 1]
    got = torch.cat([batch for batch, _ in batches])
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, normalised(images, RGB))
    classes = torch.cat([batch for _, batch in batches])
    assert classes.dtype == torch.int64 and classes.tolist() == [0, 1, 2, 3, 4]


def test_grey_npz_without_channel_axis(tmp_path: Path) -> None:
    images = pixels(3, 8, 8)
    data = open_labelled(npz(tmp_path, images, np.zeros(3, np.uint8)), GREY)
    (batch, labels), *rest = data.batches(8)
    assert not rest and labels.tolist() == [0, 0, 0]
    torch.testing.assert_close(batch, normalised(images[..., None], GREY))


def test_limit_keeps_the_first(tmp_path: Path) -> None:
    data = open_labelled(npz(tmp_path, pixels(5, 8, 8, 3), np.arange(5)), RGB, limit=3)
    assert len(data) == 3
    assert [labels.tolist() for _, labels in data.batches(2)] == [[0, 1], [2]]


def test_reading_twice_gives_the_same(tmp_path: Path) -> None:
    images = pixels(2, 8, 8, 3)
    data = open_labelled(npz(tmp_path, images, np.zeros(2, int)), RGB)
    first, second = (next(data.batches(2))[0] for _ in range(2))
    assert torch.equal(first, second)


def test_folder_is_converted_to_the_networks_channels(tmp_path: Path) -> None:
    colour, grey = pixels(8, 8, 3), pixels(8, 8)
    folder = pictures(tmp_path, [colour, grey], [7, 2])
    (batch, labels), *_ = open_labelled(folder, RGB).batches(2)
    expected = np.stack([colour, np.repeat(grey[..., None], 3, 2)])
    torch.testing.assert_close(batch, normalised(expected, RGB))
    assert labels.tolist() == [7, 2]
    assert next(open_labelled(folder, GREY).batches(2))[0].shape == (2, 1, 8, 8)


@pytest.mark.parametrize("as_folder", [False, True])
def test_cifar_binary(tmp_path: Path, as_folder: bool) -> None:
    images, labels = pixels(4, 32, 32, 3), np.array([3, 9, 0, 1], np.uint8)
    records = np.concatenate([labels[:, None], images.transpose(0, 3, 1, 2).reshape(4, -1)], 1)
    path = tmp_path / "test_batch.bin"
    path.write_bytes(records.tobytes())
    (batch, classes), *_ = open_labelled(tmp_path if as_folder else path, CIFAR).batches(4)
    torch.testing.assert_close(batch, normalised(images, CIFAR))
    assert classes.tolist() == [3, 9, 0, 1]


def test_slightly_larger_images_are_cropped_not_resized() -> None:
    spec = RGB.model_copy(update={"shape": (3, 224, 224)})
    image = torch.from_numpy(pixels(1, 3, 227, 227))
    assert torch.equal(fit(image, spec, "it"), image[:, :, 1:225, 1:225])
    edge = torch.from_numpy(pixels(1, 3, 257, 224))
    assert torch.equal(fit(edge, spec, "it"), edge[:, :, 16:240])


def test_larger_images_follow_the_imagenet_protocol() -> None:
    spec = RGB.model_copy(update={"shape": (3, 224, 224)})
    array = pixels(300, 400, 3)
    got = fit(torch.from_numpy(array).permute(2, 0, 1)[None], spec, "it")[0].permute(1, 2, 0)
    resized = Image.fromarray(array).resize((341, 256), Image.Resampling.BILINEAR)
    expected = np.array(resized)[16:240, 58:282].astype(int)
    assert np.abs(got.numpy().astype(int) - expected).max() <= 1


def test_folder_with_pictures_of_many_sizes(tmp_path: Path) -> None:
    images = [pixels(8, 9, 3), pixels(20, 30, 3), pixels(64, 10, 3)]
    (batch, _), *_ = open_labelled(pictures(tmp_path, images, [0, 1, 2]), RGB).batches(3)
    assert batch.shape == (3, 3, 8, 8)


def test_smaller_images_are_refused(tmp_path: Path) -> None:
    message = complaint(npz(tmp_path, pixels(2, 8, 7, 3), np.zeros(2, int)))
    assert "8x7 pixels, smaller than the network's 8x8" in message
    folder = pictures(tmp_path, [pixels(8, 8, 3), pixels(5, 8, 3)], [0, 0])
    assert "1.png is 5x8 pixels, smaller" in complaint(folder, read=True)


@pytest.mark.parametrize("label", [-1, 10])
def test_labels_out_of_range_are_named(tmp_path: Path, label: int) -> None:
    said = f"label {label} at index 2 of"
    scope = "the network has 10 classes, labels go from 0 to 9"
    message = complaint(npz(tmp_path, pixels(4, 8, 8, 3), np.array([0, 1, label, 3])))
    assert said in message and scope in message
    message = complaint(pictures(tmp_path, [pixels(8, 8, 3)] * 3, [0, 9, label]))
    assert said in message and scope in message


def test_labels_are_checked_beyond_the_limit(tmp_path: Path) -> None:
    path = npz(tmp_path, pixels(2, 8, 8, 3), np.array([0, 99]))
    with pytest.raises(DataError, match="label 99 at index 1"):
        open_labelled(path, RGB, limit=1)


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), np.zeros(2, int), "must be uint8"),
        (np.zeros((2, 192), np.uint8), np.zeros(2, int), "must be uint8 of shape (N, H, W, C)"),
        (pixels(2, 8, 8, 3), np.zeros(3, int), "must be 2 integers, got int64 (3,)"),
        (pixels(2, 8, 8, 3), np.zeros(2), "must be 2 integers, got float64"),
        (pixels(2, 8, 8), np.zeros(2, int), "have 1 channels, the network takes 3"),
        (pixels(0, 8, 8, 3), np.zeros(0, int), "holds no images"),
    ],
)
def test_npz_that_does_not_fit(tmp_path: Path, images: Any, labels: Any, said: str) -> None:
    assert said in complaint(npz(tmp_path, images, labels))


def test_npz_without_the_arrays(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=np.zeros(1), labels=np.zeros(1, int))
    assert "has no images (it has: x, labels)" in complaint(path)


def test_npz_is_never_unpickled(tmp_path: Path) -> None:
    path = npz(tmp_path, np.array([{"a": 1}], dtype=object), np.zeros(1, int))
    assert "it holds objects, which are pickled" in complaint(path)


@pytest.mark.parametrize("content", [b"", b"not a zip file", b"PK\x03\x04broken"])
def test_damaged_npz(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    assert f"cannot read {path}" in complaint(path)


def test_npy_under_the_name_of_npz(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    assert f"cannot read {path}" in complaint(path)


def test_nothing_there_and_unknown_layouts(tmp_path: Path) -> None:
    assert "labelled data is an .npz file, a folder" in complaint(tmp_path / "none.npz")
    assert "has neither labels.csv nor test_batch.bin" in complaint(tmp_path)
    other = tmp_path / "data.tar"
    other.touch()
    assert "cannot tell what" in complaint(other)


def test_cifar_of_wrong_length(tmp_path: Path) -> None:
    path = tmp_path / "test_batch.bin"
    path.write_bytes(bytes(3074))
    assert "3074 bytes are not a multiple of 3073" in complaint(path, CIFAR)


def test_table_without_header(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("a.png,0\n")
    assert "must begin with the line filename,class_index" in complaint(tmp_path)


def test_table_with_a_word_for_a_class(tmp_path: Path) -> None:
    folder = pictures(tmp_path, [pixels(8, 8, 3)] * 2, [0, "cat"])
    assert "line 3: class_index must be an integer, got 'cat'" in complaint(folder)


def test_table_with_absent_files(tmp_path: Path) -> None:
    folder = pictures(tmp_path, [pixels(8, 8, 3)] * 3, [0, 1, 2])
    (folder / "1.png").unlink()
    assert "lists 1 files that are not there, the first is '1.png'" in complaint(folder)


def test_damaged_picture_is_named(tmp_path: Path) -> None:
    folder = pictures(tmp_path, [pixels(8, 8, 3)], [0])
    (folder / "0.png").write_bytes(b"no picture")
    assert f"cannot read picture {folder / '0.png'}" in complaint(folder, read=True)


def test_calibration_set_is_a_seeded_draw(tmp_path: Path) -> None:
    images = pixels(20, 8, 8, 3)
    path = npz(tmp_path, images, np.arange(20) % 10)
    drawn = calibration_set(path, RGB, 6, seed=1)
    assert drawn.digest() == calibration_set(path, RGB, 6, seed=1).digest()
    assert drawn.digest() != calibration_set(path, RGB, 6, seed=2).digest()
    assert drawn.metadata["method"] == "real" and drawn.targets is not None
    everything = normalised(images, RGB)
    found = [int((everything - image).abs().amax((1, 2, 3)).argmin()) for image in drawn.images]
    assert len(set(found)) == 6
    assert [index % 10 for index in found] == drawn.targets.tolist()
    np.testing.assert_array_equal(drawn.pixels().numpy(), images[found])


def test_calibration_set_larger_than_the_data(tmp_path: Path) -> None:
    path = npz(tmp_path, pixels(2, 8, 8, 3), np.zeros(2, int))
    with pytest.raises(DataError, match=r"3 images asked for, but .* holds 2"):
        calibration_set(path, RGB, 3, seed=0)


@pytest.mark.integration
def test_shared_validation_images_are_cropped_at_one(shared: Path) -> None:
    folder = shared / "data" / "imagenet" / "val1300"
    spec = InputSpec(shape=(3, 224, 224), mean=(0.0,) * 3, std=(1.0,) * 3, classes=1000)
    data = open_labelled(folder, spec, limit=2)
    first = (folder / "labels.csv").read_text().splitlines()[1].split(",")
    with Image.open(folder / first[0]) as picture:
        array = np.array(picture.convert("RGB"))[1:225, 1:225]
    batch, labels = next(data.batches(2))
    torch.testing.assert_close(batch[0], torch.from_numpy(array).permute(2, 0, 1) / 255)
    assert labels[0] == int(first[1])


@pytest.mark.integration
def test_shared_cifar_gives_the_known_accuracy(shared: Path, shared_networks: Any) -> None:
    name = "resnet20_cifar10jpeg"
    network, net = shared_networks.NETWORKS[name], shared_networks.build(name)
    spec = InputSpec(shape=(3, 32, 32), mean=network.mean, std=network.std, classes=10)
    data = open_labelled(shared / "data" / "cifar10jpeg_test.npz", spec)
    assert len(data) == 10_000
    with torch.no_grad():
        hits = sum(int((net(x).argmax(1) == y).sum()) for x, y in data.batches(500))
    assert abs(hits / 100 - 88.02) < 0.1


def test_real_images_of_a_folder_are_drawn_without_labels(tmp_path: Path) -> None:
    spec = InputSpec(shape=(3, 4, 4), mean=(0.5,) * 3, std=(0.5,) * 3, classes=2)
    for value in range(8):
        picture = np.full((4, 4, 3), 30 * value, np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{value}.png")
    (tmp_path / "notes.txt").write_text("no picture", encoding="utf-8")
    found = real_images(tmp_path, spec, 5, seed=1)
    values = sorted(round(float(one.mean()) * 0.5 * 255 + 127.5) for one in found.images)
    assert len(set(values)) == 5
    assert set(values) <= {30 * value for value in range(8)}
    assert torch.equal(found.images, real_images(tmp_path, spec, 5, seed=1).images)
    assert len(real_images(tmp_path, spec, 100, seed=0)) == 8


def test_real_images_of_an_archive_need_no_classes(tmp_path: Path) -> None:
    spec = InputSpec(shape=(1, 4, 4), mean=(0.0,), std=(1.0,), classes=2)
    images = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)
    np.savez(tmp_path / "x.npz", images=images, labels=np.array([7, 8, 9]))
    found = real_images(tmp_path / "x.npz", spec, 3, seed=0)
    assert torch.equal(found.images, torch.from_numpy(images)[:, None].float() / 255)


def test_pictures_of_other_channels_are_refused(tmp_path: Path) -> None:
    spec = InputSpec(shape=(4, 4, 4), mean=(0.0,) * 4, std=(1.0,) * 4, classes=2)
    with pytest.raises(DataError, match="1 or 3 channels"):
        real_images(tmp_path, spec, 3, seed=0)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture", encoding="utf-8")
    with pytest.raises(DataError, match=r"holds no pictures \(.*\.png.*\)"):
        real_images(tmp_path, RGB, 3, seed=0)


def test_listed_pictures_are_refused_for_four_channels(tmp_path: Path) -> None:
    spec = InputSpec(shape=(4, 8, 8), mean=(0.0,) * 4, std=(1.0,) * 4, classes=2)
    assert "1 or 3 channels, the network takes 4: use .npz" in complaint(
        pictures(tmp_path, [pixels(8, 8, 3)], [0]), spec
    )


@pytest.mark.parametrize(
    ("labelled", "other"),
    [
        ("any", ""),
        ("boxes", ", or boxes as COCO has them, a .json file beside its pictures"),
        ("maps", ", or a folder with images and labels, a .png for each"),
    ],
)
def test_listed_classes_are_no_labels_of_a_network_without_classes(
    tmp_path: Path, labelled: Labels, other: str
) -> None:
    folder = pictures(tmp_path, [pixels(8, 8, 3)], [0])
    with pytest.raises(DataError) as caught:
        open_labelled(folder, RGB, labelled=labelled)
    assert str(caught.value).endswith(f"give an .npz file with images and labels{other}")


@pytest.mark.parametrize("labels", [np.zeros(3), np.float64(1)])
def test_labels_of_any_meaning_are_a_number_or_more_for_every_image(
    tmp_path: Path, labels: Any
) -> None:
    with pytest.raises(DataError, match="must be numbers for 2 images, got"):
        open_labelled(npz(tmp_path, pixels(2, 8, 8, 3), labels), RGB, labelled="any")


POINT = Input(name="point", shape=(2,), kind="values", mean=(0.0, 0.0), std=(1.0, 1.0))
SPEED = Input(name="speed", shape=(1,), kind="values", mean=(10.0,), std=(2.0,))
CAR = InputSpec(
    shape=(3, 1, 1), mean=(0.0, 0.0, 10.0), std=(1.0, 1.0, 2.0), classes=4, inputs=(POINT, SPEED)
)


def driven(folder: Path, **arrays: Any) -> Path:
    path = folder / "car.npz"
    given: dict[str, Any] = {
        "point": np.array([[1, 2], [3, 4]], np.float32),
        "speed": np.array([[10], [14]]),
    }
    np.savez(path, **{**given, **arrays})
    return path


def test_items_of_two_inputs_are_normalised_each_by_its_own(tmp_path: Path) -> None:
    """A speed of 14 lies (14 - 10) / 2 = 2 deviations above the mean."""
    data = open_labelled(driven(tmp_path, labels=np.array([3, 0])), CAR)
    ((items, labels),) = data.batches(4)
    assert items.flatten(1).tolist() == [[1, 2, 0], [3, 4, 2]]
    assert labels.tolist() == [3, 0]


def test_pictures_for_a_network_of_two_inputs(tmp_path: Path) -> None:
    said = complaint(pictures(tmp_path, [pixels(8, 8, 3)], [0]), CAR)
    assert "this network takes point, speed: give an .npz file with an array of each" in said


def test_items_of_two_inputs_without_labels(tmp_path: Path) -> None:
    assert "has no labels (it has: point, speed)" in complaint(driven(tmp_path), CAR)


@pytest.mark.parametrize(
    ("labels", "labelled", "said"),
    [
        (np.zeros(3, int), "classes", "must be 2 integers, got int64 (3,)"),
        (np.zeros(2), "classes", "must be 2 integers, got float64 (2,)"),
        (np.zeros((3, 5)), "any", "must be numbers for 2 items, got float64 (3, 5)"),
        (np.array(["a", "b"]), "any", "labels: it holds <U1, and only plain numbers are read"),
    ],
)
def test_labels_that_do_not_fit_items_of_two_inputs(
    tmp_path: Path, labels: Any, labelled: Labels, said: str
) -> None:
    with pytest.raises(DataError) as caught:
        open_labelled(driven(tmp_path, labels=labels), CAR, labelled=labelled)
    assert said in str(caught.value)
