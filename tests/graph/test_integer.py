"""The integer model against onnxruntime's own kernels, on every code or pair of codes."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor, fx, nn

from datafree.graph.edges import operator_of
from datafree.graph.integer import integer_model
from datafree.quant.grid import Grid
from datafree.quant.modules import ActivationQuantizer

Parameters = tuple[float, int]
pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="other processors have other kernels"
)


def by_onnxruntime(
    operator: str,
    given: list[Tensor],
    on: list[Parameters],
    result: Parameters,
    **window: Any,
) -> NDArray[np.uint8]:
    """Codes of one operator between quantizers."""
    names = [f"x{k}" for k in range(len(given))]
    nodes, constants = [], []
    for name, (scale, zero) in zip([*names, "y"], [*on, result], strict=True):
        constants.append(helper.make_tensor(f"{name}_scale", TensorProto.FLOAT, [], [scale]))
        constants.append(helper.make_tensor(f"{name}_zero", TensorProto.UINT8, [], [zero]))
    for name in names:
        read = [name, f"{name}_scale", f"{name}_zero"]
        nodes.append(helper.make_node("DequantizeLinear", read, [f"{name}_real"]))
    real = [f"{name}_real" for name in names]
    nodes.append(helper.make_node(operator, real, ["made"], **window))
    nodes.append(helper.make_node("QuantizeLinear", ["made", "y_scale", "y_zero"], ["y"]))
    graph = helper.make_graph(
        nodes, "one",
        [
            helper.make_tensor_value_info(name, TensorProto.UINT8, list(one.shape))
            for name, one in zip(names, given, strict=True)
        ],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, None)], constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {name: one.to(torch.uint8).numpy() for name, one in zip(names, given, strict=True)}
    return np.asarray(session.run(None, feeds)[0], np.uint8)


class Operator(nn.Module):
    """One operator between quantizers, whose codes come in as they are."""

    def __init__(self, operator: nn.Module, on: list[Parameters], result: Parameters) -> None:
        super().__init__()
        self.operator = operator
        self.on = nn.ModuleList(quantizer(one) for one in on)
        self.result = quantizer(result)


def quantizer(parameters: Parameters) -> ActivationQuantizer:
    made = ActivationQuantizer(Grid(8))
    made.scale, made.zero_point = (torch.tensor(float(one)) for one in parameters)
    return made


def by_the_integer_model(
    operator: nn.Module, given: list[Tensor], on: list[Parameters], result: Parameters
) -> Tensor:
    """Codes of `operator` as `integer_model` computes them."""
    root = Operator(operator, on, result)
    graph = fx.Graph()
    image = graph.placeholder("images")
    read: list[fx.Node] = []
    for k in range(len(on)):
        part = graph.call_function(torch.ops.aten.select.int, (image, 1, k))
        read.append(graph.call_module(f"on.{k}", (part,)))
    made = (
        graph.call_function(operator.function, (*read, *operator.options))  # pyright: ignore[reportArgumentType]
        if isinstance(operator, Function)
        else graph.call_module("operator", (read[0],))
    )
    graph.output(graph.call_module("result", (made,)))
    student = fx.GraphModule(root, graph)
    assert operator_of(student, made) is not None
    real = [scale * (one - zero) for one, (scale, zero) in zip(given, on, strict=True)]
    found = integer_model(student)(torch.stack(real, 1))
    return (found / result[0]).round() + result[1]


class Function(nn.Module):
    """An operator of aten, with what it is told beside tensors."""

    def __init__(self, function: object, *options: list[int]) -> None:
        super().__init__()
        self.function, self.options = function, options


def drawn(random: np.random.Generator, low: float, high: float) -> Parameters:
    return float(np.float32(random.uniform(low, high))), 2 * int(random.integers(0, 128))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", ["Add", "Mul"])
def test_two_operands(name: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    one, two = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    given = [one[None, None].contiguous(), two[None, None].contiguous()]
    on = [drawn(random, 0.001, 0.1), drawn(random, 0.001, 0.1)]
    if name == "Add":
        result = drawn(random, 0.5 * max(on)[0], 2 * max(on)[0])
    else:
        result = drawn(random, 50 * on[0][0] * on[1][0], 300 * on[0][0] * on[1][0])
    aten = torch.ops.aten
    operator = Function(aten.add.Tensor if name == "Add" else aten.mul.Tensor)
    found = by_the_integer_model(operator, given, on, result)
    assert np.array_equal(found.numpy(), by_onnxruntime(name, given, on, result))


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("name", ["Sigmoid", "LeakyRelu"])
def test_functions_of_one_operand(name: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    given = [torch.arange(256.0).reshape(1, 1, 16, 16)]
    scale, zero = drawn(random, 0.005, 0.15)
    result = (1 / 256, 0) if name == "Sigmoid" else drawn(random, 0.5 * scale, 1.2 * scale)
    operator = nn.Sigmoid() if name == "Sigmoid" else nn.LeakyReLU(0.01)
    found = by_the_integer_model(operator, given, [(scale, zero)], result)
    assert np.array_equal(found.numpy(), by_onnxruntime(name, given, [(scale, zero)], result))


@pytest.mark.parametrize("seed", range(20))
def test_means_of_windows(seed: int) -> None:
    """With the input's own grid every fourth mean of four lies between two codes."""
    random = np.random.default_rng(seed)
    given = [torch.from_numpy(random.integers(0, 256, (2, 8, 12, 12)).astype(np.float32))]
    scale, zero = drawn(random, 0.005, 0.1)
    on = [(scale, zero + seed % 2)]
    found = by_the_integer_model(
        Function(torch.ops.aten.avg_pool2d.default, [2, 2], [2, 2]), given, on, on[0]
    )
    window = {"kernel_shape": [2, 2], "strides": [2, 2]}
    assert np.array_equal(found.numpy(), by_onnxruntime("AveragePool", given, on, on[0], **window))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("sides", "padding"), [((8, 8), 0), ((8, 6), 0), ((1, 8), 0), ((4, 4), 1)])
def test_means_of_a_window_as_large_as_the_map(
    sides: tuple[int, int], padding: int, seed: int
) -> None:
    """Whole numbers are summed there, if nothing is padded; means often lie between two codes."""
    random = np.random.default_rng(seed)
    given = [torch.from_numpy(random.integers(0, 40, (64, 16, *sides)).astype(np.float32))]
    scale, zero = drawn(random, 0.02, 0.08)
    result = (scale / (2 ** (seed % 3)), zero % 8)
    window = list(sides)
    operator = Function(torch.ops.aten.avg_pool2d.default, window, [1, 1], [padding, padding])
    found = by_the_integer_model(operator, given, [(scale, zero % 8)], result)
    told = {
        "kernel_shape": window,
        "strides": [1, 1],
        "pads": [padding] * 4,
        "count_include_pad": 1,
    }
    right = by_onnxruntime("AveragePool", given, [(scale, zero % 8)], result, **told)
    assert np.array_equal(np.clip(found.numpy(), 0, 255), right)
