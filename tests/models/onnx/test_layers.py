"""Nodes of a file become the layers that the rest of the package knows, under names of the file.

Every file that is loaded here is compared with onnxruntime on the way.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import fx, nn

from datafree.graph.capture import capture
from onnx_files import Weights, drawn, head, model, node, save, small
from teachers import teacher

pytestmark = pytest.mark.integration

PLAIN: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def captured(made: onnx.ModelProto, folder: Path) -> fx.GraphModule:
    found = teacher(str(save(folder / "net.onnx", made)), **PLAIN)
    return capture(found.model, found.spec)


def kinds(graph: fx.GraphModule) -> Counter[str]:
    """Layers by class and calls by name."""
    return Counter(
        type(graph.get_submodule(str(n.target))).__name__
        if n.op == "call_module"
        else str(n.target).removeprefix("aten.").partition(".")[0]
        for n in graph.graph.nodes
        if n.op in ("call_module", "call_function")
    )


def between(nodes: list[onnx.NodeProto], weights: Weights, opset: int = 17) -> onnx.ModelProto:
    """`nodes` from ``conv`` to ``found``, between a convolution to six channels and a head."""
    tail, more = head("found", 6)
    first = node("Conv", "images conv.weight", "conv")
    return model(
        [first, *nodes, *tail], more | {"conv.weight": drawn(6, 3, 3, 3)} | weights, opset=opset
    )


def number(value: float) -> Any:
    return np.float32(value)


ACTIVATIONS: dict[str, tuple[list[onnx.NodeProto], Weights]] = {
    "ReLU": ([node("Relu", "conv", "found")], {}),
    "ReLU6": ([node("Clip", "conv low high", "found")], {"low": number(0), "high": number(6)}),
    "Hardtanh": ([node("Clip", "conv low high", "found")], {"low": number(-1), "high": number(2)}),
    "SiLU": ([node("Sigmoid", "conv", "gate"), node("Mul", "gate conv", "found")], {}),
    "Hardswish": ([node("HardSwish", "conv", "found")], {}),
    "GELU": (
        [
            node("Div", "conv root", "scaled"),
            node("Erf", "scaled", "erf"),
            node("Add", "erf one", "gate"),
            node("Mul", "conv gate", "gated"),
            node("Mul", "gated half", "found"),
        ],
        {"root": number(2**0.5), "one": number(1), "half": number(0.5)},
    ),
    "LeakyReLU": ([node("LeakyRelu", "conv", "found", alpha=0.1)], {}),
    "PReLU": ([node("PRelu", "conv slope", "found")], {"slope": drawn(6, 1, 1)}),
    "Sigmoid": ([node("Sigmoid", "conv", "found")], {}),
}


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activation(kind: str, tmp_path: Path) -> None:
    graph = captured(between(*ACTIVATIONS[kind]), tmp_path)
    assert kinds(graph) == {
        "Conv2d": 1, kind: 1, "adaptive_avg_pool2d": 1, "reshape": 1, "Linear": 1
    }  # fmt: skip


def test_hard_swish_spelled_out(tmp_path: Path) -> None:
    nodes = [
        node("Add", "conv three", "shifted"),
        node("Clip", "shifted zero six", "clipped"),
        node("Div", "clipped six", "gate"),
        node("Mul", "conv gate", "found"),
    ]
    weights = {"three": number(3), "zero": number(0), "six": number(6)}
    assert kinds(captured(between(nodes, weights), tmp_path))["Hardswish"] == 1


def test_gate_of_another_tensor_stays_a_gate(tmp_path: Path) -> None:
    nodes = [
        node("GlobalAveragePool", "conv", "mean"),
        node("Sigmoid", "mean", "gate"),
        node("Mul", "conv gate", "found"),
    ]
    found = kinds(captured(between(nodes, {}), tmp_path))
    assert (found["Sigmoid"], found["mul"], found["SiLU"]) == (1, 1, 0)


def test_batch_norm_keeps_its_numbers(tmp_path: Path) -> None:
    made = small()
    graph = captured(made, tmp_path)
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in made.graph.initializer}
    state = graph.state_dict()
    assert set(state) - {"bn.num_batches_tracked"} == set(weights) and len(weights) == 7
    assert all(np.array_equal(state[name].numpy(), weights[name]) for name in weights)
    assert isinstance(graph.get_submodule("bn"), nn.BatchNorm2d)
    assert not any(parameter.requires_grad for parameter in graph.parameters())


CONVOLUTIONS: dict[str, tuple[dict[str, Any], tuple[int, ...], Counter[str]]] = {
    "dilated": ({"dilations": [2, 2], "pads": [2, 2, 2, 2]}, (6, 6, 3, 3), Counter()),
    "strided": ({"strides": [2, 1]}, (6, 6, 3, 2), Counter()),
    "depthwise": ({"group": 6, "pads": [1, 1, 1, 1]}, (6, 1, 3, 3), Counter()),
    "uneven": ({"pads": [0, 1, 1, 0]}, (6, 6, 3, 3), Counter(pad=1)),
    "same": ({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, (6, 6, 3, 3), Counter(pad=1)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name: str, tmp_path: Path) -> None:
    attributes, shape, more = CONVOLUTIONS[name]
    made = between([node("Conv", "conv w", "found", **attributes)], {"w": drawn(*shape)})
    found = kinds(captured(made, tmp_path))
    assert found == {"Conv2d": 2, "adaptive_avg_pool2d": 1, "reshape": 1, "Linear": 1} | more


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("factors", [{}, {"alpha": 0.5, "beta": 2.0}])
def test_gemm_is_linear(transposed: int, factors: dict[str, float], tmp_path: Path) -> None:
    nodes = [
        node("Flatten", "images", "flat", axis=1),
        node("Gemm", "flat w b", "logits", transB=transposed, **factors),
    ]
    weights = {"w": drawn(*((5, 192) if transposed else (192, 5))), "b": drawn(5)}
    assert kinds(captured(model(nodes, weights), tmp_path)) == {"reshape": 1, "Linear": 1}


@pytest.mark.parametrize("apart", [False, True])
def test_product_and_sum_are_linear(apart: bool, tmp_path: Path) -> None:
    """Also where other nodes stand between the product and its bias."""
    nodes = [
        node("Flatten", "images", "flat", axis=1),
        node("MatMul", "flat w", "product"),
        *([node("MatMul", "flat v", "other")] if apart else []),
        node("Add", "b product", "sum"),
        node("Add" if apart else "Identity", "sum other" if apart else "sum", "logits"),
    ]
    weights = {"w": drawn(192, 5), "b": drawn(5), "v": drawn(192, 5, seed=1)}
    found = kinds(captured(model(nodes, weights), tmp_path))
    assert found == {"reshape": 1, "Linear": 1 + apart} | ({"add": 1} if apart else {})


def test_product_with_a_constant_on_the_left(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", "w images", "mixed"),
        node("Add", "mixed table", "placed"),
        *(tail := head("placed", 3))[0],
    ]
    weights = {"w": drawn(8, 8), "table": drawn(3, 8, 8, seed=1)}
    found = kinds(captured(model(nodes, tail[1] | weights), tmp_path))
    assert (found["matmul"], found["add"], found["Linear"]) == (1, 1, 1)


def test_table_behind_a_product_is_no_bias(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", "images w", "mixed"),
        node("Add", "mixed table", "placed"),
        *(tail := head("placed", 3))[0],
    ]
    weights = {"w": drawn(8, 8), "table": drawn(3, 8, 8, seed=1)}
    graph = captured(model(nodes, tail[1] | weights), tmp_path)
    assert (kinds(graph)["Linear"], kinds(graph)["add"]) == (2, 1)
    assert [n.target for n in graph.graph.nodes if n.op == "get_attr"] == ["table"]


def test_layer_norm_is_one_call(tmp_path: Path) -> None:
    nodes = [
        node("LayerNormalization", "images scale shift", "found", axis=-1, epsilon=1e-6),
        *(tail := head("found", 3))[0],
    ]
    weights = {"scale": drawn(8), "shift": drawn(8, seed=1)}
    assert kinds(captured(model(nodes, tail[1] | weights), tmp_path))["layer_norm"] == 1


def test_pooling_is_one_call(tmp_path: Path) -> None:
    nodes = [
        node("MaxPool", "conv", "most", kernel_shape=[2, 2], strides=[2, 2]),
        node("AveragePool", "most", "found", kernel_shape=[2, 2], pads=[1, 1, 1, 1]),
    ]
    found = kinds(captured(between(nodes, {}), tmp_path))
    assert (found["max_pool2d"], found["avg_pool2d"], found["getitem"]) == (1, 1, 0)


RESIZED = [
    {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
    {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
]


@pytest.mark.parametrize("how", RESIZED)
@pytest.mark.parametrize("batch", ["batch", 1])
def test_resizing(how: dict[str, str], batch: int | str, tmp_path: Path) -> None:
    nodes = [node("Resize", "images - scales", "found", **how), *(tail := head("found", 3))[0]]
    weights = {"scales": np.array([1, 1, 2, 2], np.float32)}
    found = kinds(captured(model(nodes, tail[1] | weights, batch=batch), tmp_path))
    assert sum(found[name] for name in ("upsample_nearest2d", "upsample_bilinear2d")) == 1


def test_shuffle_of_channels(tmp_path: Path) -> None:
    nodes = [
        node("Reshape", "conv apart", "groups"),
        node("Transpose", "groups", "swapped", perm=[0, 2, 1, 3, 4]),
        node("Reshape", "swapped together", "mixed"),
        node("Split", "mixed", "left right", axis=1),
        node("Slice", "mixed start end axis", "some"),
        node("Concat", "left right some", "found_", axis=1),
        node("Slice", "found_ start end axis", "found"),
    ]
    weights = {
        "apart": np.array([-1, 2, 3, 6, 6]), "together": np.array([-1, 6, 6, 6]),
        "start": np.array([0]), "end": np.array([6]), "axis": np.array([1]),
    }  # fmt: skip
    captured(between(nodes, weights), tmp_path)


NAMES: dict[str, tuple[str, str, str]] = {
    "weight": ("block.0.conv.weight", "n7", "block.0.conv"),
    "node of a numbered weight": ("onnx::Conv_12", "/layer1/layer1.0/conv1/Conv", "layer1.0.conv1"),
    "node of another exporter": ("w:0", "model/conv2d/Conv2D", "model.conv2d"),
    "neither": ("7", "", "conv"),
    "a word of torch": ("graph.code.weight", "", "graph_.code_"),
    "odd letters": ("ß/é-1.weight", "", "ß.é_1"),
}


@pytest.mark.parametrize("case", NAMES)
def test_name_of_a_layer(case: str, tmp_path: Path) -> None:
    weight, name, path = NAMES[case]
    tail, weights = head("conv_out", 6)
    first = helper.make_node("Conv", ["images", weight], ["conv_out"], name)
    graph = captured(model([first, *tail], weights | {weight: drawn(6, 3, 3, 3)}), tmp_path)
    layers = [str(n.target) for n in graph.graph.nodes if n.op == "call_module"]
    assert layers == [path, "fc"]


def test_weight_of_two_layers(tmp_path: Path) -> None:
    nodes = [
        node("Conv", "conv shared.weight", "once"),
        node("Conv", "once shared.weight", "found"),
    ]
    graph = captured(between(nodes, {"shared.weight": drawn(6, 6, 1, 1)}), tmp_path)
    layers = [str(n.target) for n in graph.graph.nodes if n.op == "call_module"]
    assert layers == ["conv", "shared", "shared_1", "fc"]


def test_loaded_twice_is_the_same(tmp_path: Path) -> None:
    first, second = (
        teacher(str(save(tmp_path / f"{name}.onnx", small())), **PLAIN) for name in "ab"
    )
    assert first.digest == second.digest
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(first.model(x), second.model(x))  # pyright: ignore
