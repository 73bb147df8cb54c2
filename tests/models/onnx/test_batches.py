"""Any number of images, from files made for any, for one, or for several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from datafree.graph.capture import capture
from datafree.models import Teacher
from onnx_files import Weights, drawn, head, model, node, save, small
from teachers import complaint, teacher

pytestmark = pytest.mark.integration

PLAIN: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def loaded(made: onnx.ModelProto, folder: Path) -> Teacher:
    return teacher(str(save(folder / "net.onnx", made)), **PLAIN)


def by_onnxruntime(made: onnx.ModelProto, images: NDArray[np.float32], at_once: int) -> Any:
    session = onnxruntime.InferenceSession(
        made.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    parts = np.split(images, len(images) // at_once)
    return np.concatenate([np.asarray(session.run(None, {"images": part})[0]) for part in parts])


def assert_any_batch(made: onnx.ModelProto, folder: Path, at_once: int) -> Teacher:
    """One, four and eight images give what onnxruntime gives for them, captured too."""
    found = loaded(made, folder)
    graph = capture(found.model, found.spec)
    assert isinstance(found.model, nn.Module)
    images = np.random.default_rng(5).standard_normal((8, *found.spec.shape)).astype(np.float32)
    expected = by_onnxruntime(made, images, at_once)
    for count in (1, 4, 8):
        with torch.no_grad():
            ours = found.model(torch.from_numpy(images[:count]))
            assert torch.equal(graph(torch.from_numpy(images[:count])), ours)
        assert np.abs(ours.numpy() - expected[:count]).max() < 1e-5 * np.abs(expected).max()
    return found


@pytest.mark.parametrize("batch", ["batch", 1, 4])
def test_plain_network(batch: int | str, tmp_path: Path) -> None:
    assert_any_batch(small(batch=batch), tmp_path, 1 if batch == "batch" else int(batch))


def _reshaped(batch: int | str, sizes: list[int]) -> onnx.ModelProto:
    """A feature map that is made a vector by constants."""
    nodes = [
        node("Conv", "images w", "conv", strides=[4, 4]),
        node("Reshape", "conv sizes", "flat"),
        node("Gemm", "flat fc.weight fc.bias", "logits", transB=1),
    ]
    weights = {"w": drawn(6, 3, 4, 4), "fc.weight": drawn(5, 24), "fc.bias": drawn(5)}
    return model(nodes, weights | {"sizes": np.array(sizes)}, batch=batch)


@pytest.mark.parametrize("sizes", [[1, -1], [1, 24], [-1, 24], [0, 24], [0, -1]])
def test_one_image_reshaped(sizes: list[int], tmp_path: Path) -> None:
    assert_any_batch(_reshaped(1, sizes), tmp_path, 1)


@pytest.mark.parametrize("sizes", [[4, -1], [4, 24], [-1, 24]])
def test_four_images_reshaped(sizes: list[int], tmp_path: Path) -> None:
    assert_any_batch(_reshaped(4, sizes), tmp_path, 4)


def test_size_of_the_images_read(tmp_path: Path) -> None:
    """What exporters make of ``x.view(x.size(0), -1)``."""
    nodes = [
        node("Conv", "images w", "conv", strides=[4, 4]),
        node("Shape", "conv", "shape"),
        node("Gather", "shape zero", "count", axis=0),
        node("Unsqueeze", "count axes", "first"),
        node("Concat", "first rest", "sizes", axis=0),
        node("Reshape", "conv sizes", "flat"),
        node("Gemm", "flat fc", "logits", transB=1),
    ]
    weights: Weights = {
        "w": drawn(6, 3, 4, 4), "fc": drawn(5, 24), "zero": np.array(0),
        "axes": np.array([0]), "rest": np.array([-1]),
    }  # fmt: skip
    assert_any_batch(model(nodes, weights), tmp_path, 1)


def _tokens(batch: int | str, count: int) -> onnx.ModelProto:
    """A class token for every image, then attention over heads in the middle of a reshape."""
    nodes = [
        node("Conv", "images w", "conv", strides=[4, 4]),
        node("Reshape", "conv rows", "rows_out"),
        node("Transpose", "rows_out", "words", perm=[0, 2, 1]),
        node("Concat", "token words", "all", axis=1),
        node("Transpose", "all", "time_first", perm=[1, 0, 2]),
        node("Reshape", "time_first split", "split_out"),
        node("Transpose", "split_out", "query", perm=[1, 0, 2]),
        node("Transpose", "split_out", "key", perm=[1, 2, 0]),
        node("MatMul", "query key", "scores"),
        node("Softmax", "scores", "shares", axis=-1),
        node("MatMul", "shares query", "mixed"),
        node("Transpose", "mixed", "back", perm=[1, 0, 2]),
        node("Reshape", "back joined", "joined_out"),
        node("Gather", "joined_out zero", "first", axis=0),
        node("MatMul", "first fc", "logits"),
    ]
    weights: Weights = {
        "w": drawn(6, 3, 4, 4),
        "rows": np.array([count, 6, 4]),
        "token": np.repeat(drawn(1, 1, 6), count, axis=0),
        "split": np.array([5, count * 2, 3]),
        "joined": np.array([5, count, 6]),
        "zero": np.array(0),
        "fc": drawn(6, 5),
    }
    return model(nodes, weights, batch=batch)


@pytest.mark.parametrize("count", [1, 4])
def test_class_token_and_heads(count: int, tmp_path: Path) -> None:
    assert_any_batch(_tokens(count, count), tmp_path, count)


def test_size_that_a_prime_divides(tmp_path: Path) -> None:
    """As many classes as the number of images that the network is written down with."""
    tail, weights = head("images", 3, classes=2018)
    found = assert_any_batch(model(tail, weights), tmp_path, 1)
    assert found.spec.classes == 2018


def test_one_of_the_images_taken_out(tmp_path: Path) -> None:
    """A network that looks at its first image alone is none for any number of them."""
    tail, weights = head("image", 3)
    nodes = [
        node("Gather", "images zero", "first", axis=0),
        node("Unsqueeze", "first axes", "image"),
        *tail,
    ]
    made = model(nodes, weights | {"zero": np.array(0), "axes": np.array([0])}, batch=1)
    message = complaint(lambda: loaded(made, tmp_path))
    assert (
        "cannot be run on any number of images: 3 give (3, 5) in onnxruntime and (1, 5) here"
        in (message)
    )
    assert "export it with a dynamic batch" in message


def test_a_constant_for_each_image(tmp_path: Path) -> None:
    nodes = [node("Mul", "images each", "found"), *(tail := head("found", 3))[0]]
    made = model(nodes, tail[1] | {"each": drawn(4, 3, 8, 8)}, batch=4)
    message = complaint(lambda: loaded(made, tmp_path))
    assert message.startswith(f"{tmp_path / 'net.onnx'} cannot be read: ")
    assert message.endswith("at Mul (node found)")


def test_images_with_channels_last(tmp_path: Path) -> None:
    nodes = [
        node("Transpose", "images", "found", perm=[0, 3, 1, 2]),
        *(tail := head("found", 3))[0],
    ]
    made = model(nodes, tail[1], shape=(8, 9, 3))
    found = loaded(made, tmp_path)
    assert found.spec.shape == (3, 8, 9)
    images = drawn(2, 3, 8, 9)
    ours = found.model(torch.from_numpy(images))  # pyright: ignore
    theirs = by_onnxruntime(made, images.transpose(0, 2, 3, 1), 2)
    assert np.allclose(ours.detach().numpy(), theirs, atol=1e-5)
