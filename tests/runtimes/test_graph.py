"""ONNX graphs as runtimes see them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from datafree.errors import InferenceError
from datafree.runtimes._graph import Graph, load_graph, tagged, tags
from onnx_graphs import Draft, conv, saved


def branches() -> onnx.ModelProto:
    """A branch that reads a tensor from outside it."""
    draft = Draft()
    y = conv(draft)
    inner = helper.make_graph(
        [helper.make_node("Relu", [y], ["inside"])], "inner", [],
        [helper.make_tensor_value_info("inside", TensorProto.FLOAT, None)],
    )  # fmt: skip
    condition = draft.constant("yes", np.bool_(True))
    chosen = draft.node("If", [condition], "z", then_branch=inner, else_branch=inner)
    return draft.model(chosen)


def computed(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    data = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def test_tags_change_names_and_nothing_else() -> None:
    model = branches()
    other = tagged(Graph(model))
    x = np.random.default_rng(0).standard_normal((2, 8, 12, 12), np.float32)
    before, after = (computed(m, x) for m in (model, other))
    np.testing.assert_array_equal(after, before)
    assert [tags(node.name) for node in other.graph.node] == [
        {i} for i in range(len(model.graph.node))
    ]
    assert tags("fused @3@/x", "@12@_nchwc") == {3, 12}
    assert tags("conv3") == frozenset()


def test_what_a_branch_reads_has_a_reader() -> None:
    graph = Graph(branches())
    assert [node.op_type for node in graph.read_by("y")] == ["If"]


def test_layers_have_a_constant_operand() -> None:
    draft = Draft()
    weight = draft.node("Transpose", [draft.weight("w", (4, 8))], "t", perm=[1, 0])
    one = draft.node("MatMul", [draft.quantized("x", "xq"), weight], "one")
    graph = Graph(draft.model(draft.node("MatMul", [one, one], "two")))
    assert [graph.nodes[i].name for i in graph.layers()] == ["one"]
    assert [graph.nodes[i].name for i in graph.products()] == ["two"]
    node = graph.nodes[graph.layers()[0]]
    assert (graph.weight_of(node), graph.input_of(node)) == ("t", "xq")


@pytest.mark.parametrize(
    ("node", "weight", "shown"),
    [
        ("layer1.0.conv1", "w", "layer1.0.conv1"),
        ("node_conv2d_3", "layer1.0.conv1.weight_quantized", "layer1.0.conv1"),
        ("", "layer1.0.conv1.weight", "layer1.0.conv1"),
        ("node_conv2d_3", "val_7", "node_conv2d_3"),
        ("", "val_7", "y"),
    ],
)
def test_what_a_layer_is_called(node: str, weight: str, shown: str) -> None:
    draft = Draft()
    draft.constant(weight, np.ones((8, 8, 3, 3), np.float32))
    graph = Graph(draft.model(draft.node("Conv", ["x", weight], "y", name=node)))
    assert graph.label(graph.nodes[0]) == shown


def test_a_file_that_is_missing_or_no_network_is_named(tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match=r"cannot read .*none\.onnx"):
        load_graph(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(InferenceError, match=r"text\.onnx is not an ONNX file"):
        load_graph(tmp_path / "text.onnx")


def test_several_inputs_are_given_by_name_and_need_a_shape(tmp_path: Path) -> None:
    draft = Draft()
    model = draft.model(draft.node("Add", ["x", "other"], "y"))
    kind = TensorProto.FLOAT
    model.graph.input.append(helper.make_tensor_value_info("other", kind, ["n", 7]))
    images = np.zeros((3, 4, 5, 6), np.float32)
    graph = load_graph(saved(model, tmp_path))
    del graph.model.graph.input[0].type.tensor_type.shape.dim[:]
    for size in (1, 2, 5):
        graph.model.graph.input[0].type.tensor_type.shape.dim.add().dim_value = size
    given = graph.given(images)
    assert isinstance(given, dict)
    assert {name: array.shape for name, array in given.items()} == {"x": (3, 2, 5), "other": (3, 7)}
    graph.model.graph.input[1].type.tensor_type.shape.dim[1].dim_param = "any"
    with pytest.raises(InferenceError, match="does not say what shape its input other has"):
        graph.given(images)
