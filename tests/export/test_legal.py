"""Rules of runtimes, each on a graph that keeps it and on the same graph with one thing changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import fx

from datafree.calibrators.base import calibrate
from datafree.calibrators.minmax import MinMax
from datafree.config import Scheme
from datafree.errors import ExportError
from datafree.export._legal import problems
from datafree.export.onnx import Onnx
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.graph.settle import settle
from drawn import DRAWN_SPEC, Drawn, drawn_images
from residual import RESIDUAL_SPEC, Branches, ResNet, residual_images

Values = NDArray[Any] | np.generic


class Block:
    """conv1 - Relu - conv2, added to what came in; Q/DQ where TensorRT wants them."""

    def __init__(self, code: type = np.int8, scale: float = 0.25) -> None:
        self.code, self.scale = code, scale
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: dict[str, Values] = {}
        self.pair("x", "x")
        self.layer("conv1", "x_dq")
        self.node("Relu", ["conv1"], "relu")
        self.pair("relu", "relu")
        self.layer("conv2", "relu_dq")
        self.node("Add", ["conv2", "x_dq"], "add")
        self.pair("add", "add")
        self.node("Identity", ["add_dq"], "y")

    def node(self, kind: str, read: list[str], output: str, **options: Any) -> onnx.NodeProto:
        self.nodes.append(helper.make_node(kind, read, [output], output, **options))
        return self.nodes[-1]

    def pair(self, source: str, stem: str) -> None:
        self.tensors[f"{stem}_s"] = np.float32(self.scale)
        self.tensors[f"{stem}_z"] = np.zeros((), self.code)
        self.node("QuantizeLinear", [source, f"{stem}_s", f"{stem}_z"], f"{stem}_q")
        self.node("DequantizeLinear", [f"{stem}_q", f"{stem}_s", f"{stem}_z"], f"{stem}_dq")

    def layer(self, name: str, source: str) -> None:
        self.tensors |= {
            f"{name}_w": np.arange(-8, 8, dtype=np.int8).reshape(4, 4, 1, 1),
            f"{name}_ws": np.full(4, 0.5, np.float32),
            f"{name}_wz": np.zeros(4, np.int8),
            f"{name}_b": np.ones(4, np.float32),
        }
        read = [f"{name}_{part}" for part in ("w", "ws", "wz")]
        self.node("DequantizeLinear", read, f"{name}_wdq", axis=0)
        self.node("Conv", [source, f"{name}_wdq", f"{name}_b"], name)

    def named(self, name: str) -> onnx.NodeProto:
        return next(node for node in self.nodes if node.output[0] == name)

    def between(self, name: str, stem: str) -> None:
        """A pair behind `name`, which all its readers read."""
        readers = [node for node in self.nodes if name in node.input]
        place = self.nodes.index(self.named(name)) + 1
        behind, self.nodes = self.nodes[place:], self.nodes[:place]
        self.pair(name, stem)
        self.nodes += behind
        for node in readers:
            node.input[list(node.input).index(name)] = f"{stem}_dq"

    def model(self, opset: int = 21) -> onnx.ModelProto:
        shape = [1, 4, 2, 2]
        graph = helper.make_graph(
            self.nodes, "block",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
            [numpy_helper.from_array(np.asarray(v), n) for n, v in self.tensors.items()],
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


Change = Callable[[Block], object]


def put(name: str, value: Any) -> Change:
    return lambda block: block.tensors.update({name: np.asarray(value)})


def unsigned(block: Block) -> None:
    block.tensors["relu_z"] = np.zeros((), np.uint8)


def no_zero_point(block: Block) -> None:
    for name in ("relu_q", "relu_dq"):
        del block.named(name).input[2]


def integer_bias(block: Block) -> None:
    block.tensors["conv1_b"] = np.ones(4, np.int32)
    place = block.nodes.index(block.named("conv1"))
    dequantize = helper.make_node("DequantizeLinear", ["conv1_b", "conv1_ws"], ["bias"], axis=0)
    block.nodes.insert(place, dequantize)
    block.named("conv1").input[2] = "bias"


def small_bias(block: Block) -> None:
    integer_bias(block)
    block.tensors["conv1_b"] = np.ones(4, np.int8)


def clipped_codes(block: Block) -> None:
    place = block.nodes.index(block.named("relu_dq"))
    block.tensors |= {"low": np.int8(0), "high": np.int8(15)}
    clip = helper.make_node("Clip", ["relu_q", "low", "high"], ["few"], "clip")
    block.nodes.insert(place, clip)
    block.named("relu_dq").input[0] = "few"


def other_scale(block: Block) -> None:
    block.tensors["other"] = np.float32(0.125)
    block.named("relu_dq").input[1] = "other"


def wrong_axis(block: Block) -> None:
    block.named("conv2_wdq").attribute[0].i = 1


def float_shortcut(block: Block) -> None:
    block.named("add").input[1] = "x"


def float_input(block: Block) -> None:
    block.named("conv2").input[0] = "relu"


def plain(block: Block) -> None:
    """Nothing changed."""


def quantized_branch(block: Block) -> None:
    block.between("conv2", "branch")


def first_quantized(block: Block) -> None:
    """A convolution on the shortcut too: its output is quantized, the other takes the sum in."""
    block.layer("side", "x_dq")
    made, block.nodes = block.nodes[-2:], block.nodes[:-2]
    place = block.nodes.index(block.named("add"))
    block.nodes[place:place] = made
    block.named("add").input[1] = "side"
    block.between("side", "shortcut")


TENSORRT: list[tuple[Change, str]] = [
    (unsigned, "relu_q: codes of uint8, they have to be int8"),
    (no_zero_point, "relu_q: codes of uint8, they have to be int8"),
    (put("relu_z", np.int8(-128)), "relu_q: zero point -128, it has to be 0"),
    (put("conv1_wz", np.array([0, 3, 0, 0], np.int8)), "conv1_wdq: zero point 3, it has to be 0"),
    (put("conv2_w", np.full((4, 4, 1, 1), -128, np.int8)), "conv2: weight codes of -128"),
    (integer_bias, "DequantizeLinear of bias: an int32 bias has to be float"),
    (small_bias, "conv1: its bias is quantized, it has to be float"),
    (put("relu_s", np.full(4, 0.25, np.float32)), "relu_q: 4 scales for an activation"),
    (put("relu_s", np.float32(0)), "relu_q: a scale that is not positive and finite"),
    (clipped_codes, "relu_q: clip reads its codes, only DequantizeLinear may"),
    (other_scale, "relu_q: its DequantizeLinear has another scale"),
    (wrong_axis, "conv2: weight scales along axis 1, not its outputs"),
    (float_input, "conv2: its weight is quantized and its input is not"),
    (float_shortcut, "add: its shortcut x is not quantized"),
    (quantized_branch, "add: Q/DQ on its convolution branch"),
]


@pytest.mark.parametrize("change", [plain, first_quantized], ids=lambda c: c.__name__)
def test_a_legal_graph_has_no_problems(change: Change) -> None:
    block = Block()
    change(block)
    onnx.checker.check_model(block.model())
    assert problems(block.model(), "tensorrt") == []


@pytest.mark.parametrize(("change", "told"), TENSORRT, ids=[told for _, told in TENSORRT])
def test_tensorrt_names_the_layer_and_the_rule(change: Change, told: str) -> None:
    block = Block()
    change(block)
    found = problems(block.model(), "tensorrt")
    assert any(problem.startswith(told) for problem in found), found


def test_scales_per_channel_need_an_opset() -> None:
    assert problems(Block().model(), "tensorrt") == []
    assert problems(Block().model(11), "tensorrt") == [
        "opset 11: scales per channel need 13 or later"
    ]


def per_tensor(scale: float) -> Block:
    block = Block(scale=scale)
    for name in ("conv1", "conv2"):
        block.tensors[f"{name}_ws"] = np.full((), 0.5, np.float32)
        block.tensors[f"{name}_wz"] = np.zeros((), np.int8)
        del block.named(f"{name}_wdq").attribute[:]
    return block


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (put("relu_s", np.float32(0.3)), "relu_q: a scale that is no power of two"),
        (put("conv1_ws", np.float32(0.3)), "conv1_wdq: a scale that is no power of two"),
        (put("relu_z", np.int8(1)), "relu_q: zero point 1, it has to be 0"),
        (unsigned, "relu_q: codes of uint8, they have to be int8"),
        (
            put("conv2_ws", np.full(4, 0.5, np.float32)),
            "conv2: a weight scale per channel, it has to be one per tensor",
        ),
    ],
)
def test_vitis_wants_powers_of_two_and_one_scale(change: Change, told: str) -> None:
    assert problems(per_tensor(0.25).model(), "vitis") == []
    block = per_tensor(0.25)
    change(block)
    assert any(p.startswith(told) for p in problems(block.model(), "vitis"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (put("relu_z", np.int8(0)), "relu_q: an activation has to be uint8 or uint16"),
        (put("relu_s", np.float32(1e-7)), "relu_q: a range below 0.0001"),
        (float_input, "conv2: its weight is quantized and its input is not"),
    ],
)
def test_qnn_wants_all_around_a_layer_quantized(change: Change, told: str) -> None:
    block = Block(np.uint8)
    # Unlike TensorRT it has a pair behind every convolution.
    assert problems(block.model(), "qnn") == ["conv2: what it computes is not quantized"]
    quantized_branch(block)
    assert problems(block.model(), "qnn") == []
    change(block)
    assert any(p.startswith(told) for p in problems(block.model(), "qnn"))


def test_of_other_targets_nothing_is_known() -> None:
    block = Block()
    unsigned(block)
    assert problems(block.model(), "onnxruntime") == []


def student(net: Any, spec: Any, images: Any, target: str) -> fx.GraphModule:
    folded = fold_batch_norms(capture(net, spec))
    made = insert_quantizers(folded, Scheme(target=target), spec)
    calibrate(made, [images], MinMax())
    return settle(made)


@pytest.mark.integration
@pytest.mark.parametrize("target", ["tensorrt", "vitis", "qnn"])
@pytest.mark.parametrize("net", [ResNet, Branches], ids=lambda c: c.__name__)
def test_students_of_a_target_are_legal_files(target: str, net: Any, tmp_path: Path) -> None:
    made = student(net(), RESIDUAL_SPEC, residual_images(32, 0), target)
    path = tmp_path / "student.onnx"
    report = Onnx().export(made, RESIDUAL_SPEC, path, check=residual_images(16, 1))
    assert report.parity.mismatches == 0
    assert report.notes[0].startswith(f"This file is for {target};")
    model = onnx.load(path)
    assert problems(model, target) == []
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) > 5
    if target == "tensorrt":
        stored = {t.name: t for t in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                assert stored[node.input[2]].data_type == TensorProto.INT8
        floats = [t for t in model.graph.initializer if t.name.endswith("bias")]
        assert floats and all(t.data_type == TensorProto.FLOAT for t in floats)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("target", "seed"),
    # Grids that tensors share, and a dead channel whose scale is tiny.
    [("vitis", 1), ("vitis", 4), ("qnn", 4), ("tensorrt", 4)],
)
def test_drawn_networks_are_legal_too(target: str, seed: int, tmp_path: Path) -> None:
    made = student(Drawn(seed), DRAWN_SPEC, drawn_images(32, 100), target)
    path = tmp_path / "student.onnx"
    Onnx().export(made, DRAWN_SPEC, path, check=drawn_images(32, 7))
    assert problems(onnx.load(path), target) == []


@pytest.mark.integration
def test_a_file_that_its_target_would_refuse_is_not_written(tmp_path: Path) -> None:
    made = student(ResNet(), RESIDUAL_SPEC, residual_images(32, 0), "onnxruntime")
    made.meta["target"] = "tensorrt"  # affine activations, as if somebody had mixed them up
    with pytest.raises(ExportError, match=r"would not run this file as written: images"):
        Onnx().export(made, RESIDUAL_SPEC, tmp_path / "student.onnx")
    assert list(tmp_path.iterdir()) == []
