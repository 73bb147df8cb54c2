"""ONNX files that take several inputs, a vector, or an image of bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from datafree.models import Teacher
from onnx_files import FLOAT, drawn, head, model, node, save
from teachers import complaint, teacher


def image_and_facts(batch: int | str = "batch") -> onnx.ModelProto:
    """A mean by channel beside four numbers, then a linear layer."""
    made = model(
        [
            node("Conv", "images w", "conv", pads=[1, 1, 1, 1]),
            node("Relu", "conv", "relu"),
            node("GlobalAveragePool", "relu", "pooled"),
            node("Flatten", "pooled", "flat"),
            node("Concat", "flat facts.1", "both", axis=1),
            node("Gemm", "both v", "logits", transB=1),
        ],
        {"w": drawn(6, 3, 3, 3), "v": drawn(5, 10)},
        batch=batch,
    )
    made.graph.input.append(helper.make_tensor_value_info("facts.1", FLOAT, (batch, 4)))
    return made


NORMAL = {"mean": (0.5, 0.4, 0.3), "std": (0.25, 0.2, 0.3)}


def computed(found: Teacher, *given: torch.Tensor) -> torch.Tensor:
    assert isinstance(found.model, nn.Module)
    with torch.no_grad():
        return found.model(*given)


@pytest.mark.parametrize("batch", ["batch", 1])
def test_an_image_and_a_vector(batch: int | str, tmp_path: Path) -> None:
    path = save(tmp_path / "net.onnx", image_and_facts(batch))
    found = teacher(str(path), **NORMAL)
    assert [one.name for one in found.spec.inputs] == ["images", "facts_1"]
    assert [one.kind for one in found.spec.inputs] == ["image", "values"]
    assert found.spec.inputs[0].std == NORMAL["std"]
    images, facts = torch.randn(1, 3, 8, 8), torch.randn(1, 4)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"images": images.numpy(), "facts.1": facts.numpy()})
    torch.testing.assert_close(
        computed(found, images, facts), torch.from_numpy(expected), rtol=1e-4, atol=1e-5
    )
    assert computed(found, images.repeat(3, 1, 1, 1), facts.repeat(3, 1)).shape == (3, 5)


def test_shapes_of_both_are_asked_for_or_compared(tmp_path: Path) -> None:
    path = save(tmp_path / "net.onnx", image_and_facts())
    told = complaint(lambda: teacher(str(path), input_shape=(3, 8, 8), **NORMAL))
    assert "takes 2 inputs (images, facts.1), and 1 shape was given" in told
    told = complaint(lambda: teacher(str(path), input_shape=((3, 8, 8), (5,)), **NORMAL))
    assert "was exported for facts.1 of 4, not 5" in told
    told = complaint(lambda: teacher(str(path)))
    assert "how images are normalised that it takes as images: give mean and std" in told


def test_a_vector_alone(tmp_path: Path) -> None:
    made = model([node("Gemm", "images w", "logits", transB=1)], {"w": drawn(5, 7)}, shape=(7,))
    found = teacher(str(save(tmp_path / "net.onnx", made)))
    assert [one.shape for one in found.spec.inputs] == [(7,)]
    x = torch.randn(3, 7)
    torch.testing.assert_close(computed(found, x), x @ torch.from_numpy(drawn(5, 7)).T)


@pytest.mark.parametrize("last", [False, True])
def test_an_image_of_bytes(last: bool, tmp_path: Path) -> None:
    tail, weights = head("scaled", 3)
    first = [node("Cast", "images", "cast", to=FLOAT)]
    first += [node("Transpose", "cast", "moved", perm=[0, 3, 1, 2])] if last else []
    first += [node("Div", f"{'moved' if last else 'cast'} white", "scaled")]
    made = model(
        [*first, *tail], weights | {"white": np.array(255, np.float32)},
        shape=(8, 8, 3) if last else (3, 8, 8), kind=TensorProto.UINT8,
    )  # fmt: skip
    path = save(tmp_path / "net.onnx", made)
    found = teacher(str(path))
    assert found.spec.shape == (3, 8, 8)
    assert found.spec.mean == (0.0,) * 3
    assert found.spec.std == (1 / 255,) * 3  # normalised images are pixels
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = pixels if last else pixels.transpose(0, 3, 1, 2)
    (expected,) = session.run(None, {"images": np.ascontiguousarray(given)})
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(computed(found, x), torch.from_numpy(expected), rtol=1e-4, atol=1e-5)
    told = complaint(lambda: teacher(str(path), mean=(0.0,) * 3, std=(1.0,) * 3))
    assert "takes pixels from 0 to 255 as bytes, and normalises them itself: leave out mean" in told
