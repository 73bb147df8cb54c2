"""Layers kept in float stay so in what onnxruntime makes of a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from datafree.export._kept import keep_apart
from datafree.runtimes.onnxruntime import OnnxRuntime

KERNELS = {"Conv": (3, 2, 1, 1), "Gemm": (3, 2)}
RANDOM = np.random.default_rng(0)


def layer_between_codes(op: str) -> onnx.ModelProto:
    """A float layer that reads dequantized codes and whose result is quantized."""
    shape = ["batch", 2, 4, 4] if op == "Conv" else ["batch", 2]
    attributes = {} if op == "Conv" else {"transB": 1}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node(op, ["d", "layer.weight", "b"], ["y"], "layer", **attributes),  # pyright: ignore
        helper.make_node("QuantizeLinear", ["y", "s", "z"], ["p"]),
        helper.make_node("DequantizeLinear", ["p", "s", "z"], ["out"]),
    ]
    weight = RANDOM.standard_normal(KERNELS[op]).astype(np.float32)
    weight[0] *= 300  # one scale for all is fatal for the others
    constants = {
        "s": np.float32(0.01), "z": np.uint8(128), "b": np.zeros(3, np.float32),
        "layer.weight": weight,
    }  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [shape[0], 3, *shape[2:]])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def answers(model: onnx.ModelProto, x: NDArray[np.float32], *, optimised: bool) -> NDArray[float]:  # pyright: ignore
    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {"x": x})[0]  # pyright: ignore


@pytest.mark.parametrize("op", ["Conv", "Gemm"])
def test_the_runtime_computes_the_layer_in_float(op: str, tmp_path: Path) -> None:
    plain, kept = layer_between_codes(op), layer_between_codes(op)
    kept.graph.CopyFrom(plain.graph)
    keep_apart(kept, ["layer"])
    onnx.checker.check_model(kept, full_check=True)
    shape = (64, 2, 4, 4) if op == "Conv" else (64, 2)
    x = RANDOM.standard_normal(shape).astype(np.float32)
    exact = answers(plain, x, optimised=False)
    assert np.array_equal(answers(kept, x, optimised=False), exact)
    # Sums in another order may round to the next code, 0.01 away.
    assert np.abs(answers(kept, x, optimised=True) - exact).max() < 0.0101
    # Without it onnxruntime rounds the weights: the day it does not, the Clip can go.
    assert np.abs(answers(plain, x, optimised=True) - exact).max() > 0.05
    for name, model, integer in (("plain", plain, 1), ("kept", kept, 0)):
        onnx.save(model, tmp_path / f"{name}.onnx")
        assert OnnxRuntime().kernels(tmp_path / f"{name}.onnx").integer == integer


def test_nothing_else_is_touched() -> None:
    model = layer_between_codes("Conv")
    before = model.SerializeToString(deterministic=True)
    for names in ((), ("other",)):
        keep_apart(model, names)
        assert model.SerializeToString(deterministic=True) == before
