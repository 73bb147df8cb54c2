"""onnxruntime: what is read off its optimised graph and its profile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from datafree.errors import InferenceError
from datafree.runtimes.onnxruntime import OnnxRuntime
from onnx_graphs import Draft, conv, saved


def chain(draft: Draft) -> onnx.ModelProto:
    """Two integer convolutions, one in float between an Add, and the head of the network."""
    first = draft.quantized(draft.node("Relu", [conv(draft)], "r"), "a")
    second = draft.node(
        "Conv", [first, draft.weight("net.second.weight", (8, 8, 3, 3))], "s", pads=[1, 1, 1, 1],
        name="net.second",
    )  # fmt: skip
    joined = draft.quantized(draft.node("Add", [second, first], "sum"), "b")
    third = draft.node("Conv", [joined, draft.weight("c.weight", (8, 8, 3, 3))], "t", name="third")
    return draft.model(draft.quantized(third, "o"))


def test_layers_are_told_apart(tmp_path: Path) -> None:
    found = OnnxRuntime().kernels(saved(chain(Draft()), tmp_path))
    assert (found.integer, found.total) == (2, 3)
    assert [layer.name for layer in found.floats] == ["net.second"]
    assert found.floats[0].share is None


def test_a_float_layer_pays_for_its_weights_in_every_run(tmp_path: Path) -> None:
    """Its share of the time holds the DequantizeLinear that makes them anew."""
    found = OnnxRuntime().kernels(saved(chain(Draft()), tmp_path), (8, 12, 12))
    (layer,) = found.floats
    assert layer.share is not None and 0.05 < layer.share < 1


def test_nodes_may_have_no_names_or_the_same(tmp_path: Path) -> None:
    for name in ("", "same"):
        model = chain(Draft())
        for node in model.graph.node:
            node.name = name
        found = OnnxRuntime().kernels(saved(model, tmp_path))
        assert (found.integer, found.total) == (2, 3)
        assert found.floats[0].name == (name or "net.second")


def test_products_of_two_activations_are_counted_apart(tmp_path: Path) -> None:
    draft = Draft()
    one, two = draft.quantized("x", "a"), draft.quantized("x", "b", zero=3)
    y = draft.node("MatMul", [one, two], "y")
    found = OnnxRuntime().kernels(saved(draft.model(draft.quantized(y, "o")), tmp_path))
    assert (found.integer, found.total) == (0, 0)
    assert (found.integer_products, found.products) == (1, 1)


def test_dynamic_quantization_multiplies_integers(tmp_path: Path) -> None:
    draft = Draft()
    draft.nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], "dynamic"))
    weight = draft.constant("net.head.weight", np.ones((12, 4), np.int8))
    product = draft.node("MatMulInteger", ["q", weight, "z"], "product", name="net.head")
    real = draft.node("Cast", [product], "real", to=TensorProto.FLOAT)
    scale = draft.node("Mul", ["s", draft.constant("w.scale", np.float32(0.1))], "scale")
    model = draft.model(draft.node("Mul", [real, scale], "y"))
    found = OnnxRuntime().kernels(saved(model, tmp_path))
    assert (found.integer, found.total) == (1, 1)


@pytest.mark.parametrize(
    ("zeros", "shifted", "scattered"),
    [(np.zeros(8, np.int8), 0, 0), (np.full(8, 128, np.uint8), 1, 0),
     (np.arange(8, dtype=np.int8), 1, 1)],
)  # fmt: skip
def test_weights_with_slow_kernels_are_counted(
    zeros: NDArray[Any], shifted: int, scattered: int, tmp_path: Path
) -> None:
    draft = Draft()
    codes = np.full((8, 1, 3, 3), 7, zeros.dtype)
    given = [
        draft.constant("codes", codes), draft.constant("scale", np.full(8, 0.01, np.float32)),
        draft.constant("zero", zeros),
    ]  # fmt: skip
    weight = draft.node("DequantizeLinear", given, "w", axis=0)
    y = draft.node("Conv", [draft.quantized("x", "xq"), weight], "y", group=8)
    found = OnnxRuntime().kernels(saved(draft.model(draft.quantized(y, "o")), tmp_path))
    assert (found.integer, found.depthwise) == (1, 1)
    assert (found.shifted, found.scattered) == (shifted, scattered)


def test_a_refused_file_is_named_with_what_onnxruntime_said(tmp_path: Path) -> None:
    draft = Draft()
    model = draft.model(draft.node("NoSuchOperator", ["x"], "y"))
    path = saved(model, tmp_path)
    with pytest.raises(InferenceError, match=r"cannot load .*draft\.onnx: .*NoSuchOperator"):
        OnnxRuntime().opened(path, 1)
    with pytest.raises(InferenceError, match=r"cannot load .*draft\.onnx"):
        OnnxRuntime().kernels(path)


def test_images_of_another_shape_are_refused(tmp_path: Path) -> None:
    path = saved(chain(Draft()), tmp_path)
    with pytest.raises(InferenceError, match=r"cannot run .*draft\.onnx"):
        OnnxRuntime().kernels(path, (3, 12, 12))
    with pytest.raises(InferenceError, match=r"cannot run .*draft\.onnx"):
        OnnxRuntime().opened(path, 1)(np.zeros((1, 3, 12, 12), np.float32))
