"""ONNX files of some kB that would become terabytes, or would never end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bounded import refused
from onnx import TensorProto, helper, numpy_helper

from datafree.errors import ModelError
from datafree.models.onnx import load_onnx
from onnx_files import drawn, head, model, node, save

BIG = np.array([1, 3, 10**6, 10**6], np.int64)
ONES = {"one": np.ones(1, np.float32)}


def refusal(path: Path, made: onnx.ModelProto) -> str:
    onnx.save(made, path / "x.onnx")
    return refused(lambda: load_onnx(path / "x.onnx"), ModelError)


def small(nodes: list[onnx.NodeProto], weights: dict[str, Any], **given: Any) -> onnx.ModelProto:
    """A network that adds `big`, which `nodes` make, to its images."""
    last, more = head("sum", 3)
    added = [node("ReduceMax", "big", "least", keepdims=0), node("Add", "images least", "sum")]
    return model([*nodes, *added, *last], weights | more, **given)


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ([node("ConstantOfShape", "size", "big")], {"size": BIG}),
        ([node("Expand", "one size", "big")], {"size": BIG} | ONES),
        ([node("Tile", "row size", "big")], {"row": drawn(1, 3, 2, 2), "size": BIG}),
        (
            [node("Range", "low high step", "big")],
            {"low": np.float32(0), "high": np.float32(1e12), "step": np.float32(1)},
        ),
        ([node("MatMul", "tall wide", "big")], {"tall": drawn(9000, 1), "wide": drawn(1, 9000)}),
        (
            [node("Add", "tall wide", "b1"), node("Add", "b1 deep", "big")],
            {"tall": drawn(8000, 1, 1), "wide": drawn(8000, 1), "deep": drawn(8000)},
        ),
        (
            [node("Sum", "tall wide deep", "big")],
            {"tall": drawn(8000, 1, 1), "wide": drawn(8000, 1), "deep": drawn(8000)},
        ),
        ([node("Pad", "row pads", "big")], {"row": drawn(1, 3, 2, 2), "pads": np.tile(BIG, 2)}),
        (
            [node("Resize", "row - - size", "big")],
            {"row": drawn(1, 3, 2, 2), "size": BIG},
        ),
    ],
)  # fmt: skip
def test_constants_that_are_computed(tmp_path: Path, nodes: Any, weights: Any) -> None:
    said = refusal(tmp_path, small(nodes, weights))
    assert "computes a constant of" in said or "numbers of one item" in said or "x.onnx" in said


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ([node("Expand", "images size", "big")], {"size": np.array([10**7, 1, 1, 1, 1])}),
        ([node("Tile", "images size", "big")], {"size": np.array([1, 1, 10**6, 10**6])}),
        ([node("Pad", "images pads", "big")], {"pads": np.array([0, 0, 0, 0, 0, 0, 10**6, 10**6])}),
        (
            [node("Resize", "images - scales", "big")],
            {"scales": np.array([1, 1, 1e5, 1e5], np.float32)},
        ),
        (
            [node("Reshape", "images shape", "rows"), node("Add", "rows tall", "big")],
            {"shape": np.array([0, 1, -1]), "tall": drawn(2_000_000, 1)},
        ),
    ],
)  # fmt: skip
def test_values_that_grow_with_the_images(tmp_path: Path, nodes: Any, weights: Any) -> None:
    assert "numbers of one item, by" in refusal(tmp_path, small(nodes, weights))


@pytest.mark.parametrize("data", [bytes(16), b""])
def test_a_weight_that_claims_terabytes(tmp_path: Path, data: bytes) -> None:
    made = small([node("Identity", "w", "big")], {"w": drawn(4)})
    weight = made.graph.initializer[0]
    weight.dims[:] = [10**6, 10**6]
    weight.raw_data = data
    assert "is damaged" in refusal(tmp_path, made)


@pytest.mark.parametrize("sizes", [(3, 10**6, 10**6), (10**9, 8, 8)])
def test_images_that_nobody_has(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    nodes, weights = head("images", sizes[0] if sizes[0] < 100 else 3)
    made = model(nodes, weights, shape=sizes)
    assert "has more than 67108864 numbers" in refusal(tmp_path, made)


def test_a_batch_that_nobody_has(tmp_path: Path) -> None:
    """Found by fuzzing: three images are repeated until they are as many as the file takes."""
    nodes, weights = head("images", 3)
    made = model(nodes, weights, batch=2**40)
    assert "has more than 67108864 numbers" in refusal(tmp_path, made)


def test_functions_that_double_forty_times(tmp_path: Path) -> None:
    made = small([helper.make_node("f0", ["images"], ["big"], domain="d")], {})
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)]
    made.opset_import.append(opsets[1])
    for level in range(40):
        inner = [helper.make_node(f"f{level + 1}", ["x"], ["y"], domain="d") for _ in range(2)]
        inner[0].output[0], inner[1].input[0] = "between", "between"
        made.functions.append(helper.make_function("d", f"f{level}", ["x"], ["y"], inner, opsets))
    end = [helper.make_node("Relu", ["x"], ["y"])]
    made.functions.append(helper.make_function("d", "f40", ["x"], ["y"], end, opsets))
    assert "has functions that become more than 50000 nodes" in refusal(tmp_path, made)


def test_a_function_that_calls_itself(tmp_path: Path) -> None:
    made = small([helper.make_node("f", ["images"], ["big"], domain="d")], {})
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)]
    made.opset_import.append(opsets[1])
    inner = [helper.make_node("f", ["x"], ["y"], domain="d")]
    made.functions.append(helper.make_function("d", "f", ["x"], ["y"], inner, opsets))
    assert "has functions that become more than 50000 nodes" in refusal(tmp_path, made)


def test_a_loop_that_does_not_end(tmp_path: Path) -> None:
    number, truth = TensorProto.INT64, TensorProto.BOOL
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Relu", ["x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("i", number, ()),
            helper.make_tensor_value_info("go", truth, ()),
            helper.make_tensor_value_info("x", 1, None),
        ],
        [
            helper.make_tensor_value_info("on", truth, ()),
            helper.make_tensor_value_info("y", 1, None),
        ],
    )
    loop = helper.make_node("Loop", ["times", "", "images"], ["big"], "loop", body=body)
    made = small([loop], {"times": np.array(2**62)})
    assert "repeats a part of itself, by Loop (node loop)" in refusal(tmp_path, made)


def test_graphs_within_graphs(tmp_path: Path) -> None:
    truth = numpy_helper.from_array(np.array(True), "t")
    graph = helper.make_graph(
        [helper.make_node("Identity", ["images"], ["y"])], "g", [],
        [helper.make_tensor_value_info("y", 1, None)],
    )  # fmt: skip
    for _ in range(12):
        branch = helper.make_node("If", ["t"], ["y"], then_branch=graph, else_branch=graph)
        outer = onnx.GraphProto()
        outer.name = "g"
        outer.node.add().CopyFrom(branch)
        outer.output.add().CopyFrom(graph.output[0])
        graph = outer
    made = small([helper.make_node("If", ["t"], ["big"], then_branch=graph, else_branch=graph)], {})
    made.graph.initializer.append(truth)
    assert "has graphs within graphs, deeper than 8" in refusal(tmp_path, made)


def test_weights_that_are_listed_a_thousand_times(tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(bytes(4_000_000))
    made = small([node("Identity", "w0", "big")], {"w0": drawn(1000, 1000)})
    for index in range(1000):
        tensor = made.graph.initializer[0] if not index else made.graph.initializer.add()
        tensor.CopyFrom(TensorProto(name=f"w{index}", data_type=1, dims=[1000, 1000]))
        tensor.data_location = TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", "data.bin"
    assert "bytes are claimed of files that have 4000000" in refusal(tmp_path, made)


def test_a_network_that_makes_its_constants_is_read(tmp_path: Path) -> None:
    """The attacks are refused for what they ask for, not for computing it."""
    nodes = [
        node("ConstantOfShape", "size", "zeros"), node("Expand", "one size", "ones"),
        node("Add", "zeros ones", "big"),
    ]  # fmt: skip
    made = small(nodes, {"size": np.array([1, 3, 8, 8])} | ONES)
    load_onnx(save(tmp_path / "x.onnx", made))
