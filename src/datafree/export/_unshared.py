"""A file in which nobody reads the weights of somebody else."""

from __future__ import annotations

from collections import Counter

import onnx


def unshared(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model`, changed in place: every reader of weights as integers gets a copy of them.

    onnxruntime's exact mode turns weights of int8 into uint8, and fails at those that it meets a
    second time.

    Args:
        model: with its weights in it.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input)
    met: Counter[str] = Counter()
    nodes: list[onnx.NodeProto] = []
    made: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            made[node.output[0]] = node
            if readers[node.output[0]] < 2:
                nodes.append(_with_own(node, constants, met, graph))
            continue
        for place, name in enumerate(node.input):
            if name in made and readers[name] > 1:
                own = onnx.NodeProto()
                own.CopyFrom(made[name])
                own.output[0] = node.input[place] = f"{name}/{met[name]}"
                own.name = own.output[0]
                met[name] += 1
                nodes.append(_with_own(own, constants, met, graph))
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def _with_own(
    node: onnx.NodeProto,
    constants: dict[str, onnx.TensorProto],
    met: Counter[str],
    graph: onnx.GraphProto,
) -> onnx.NodeProto:
    """`node` reading constants that no other node has read; the first of all has the old ones."""
    for place, name in enumerate(node.input):
        if name in constants and met[name]:
            tensor = onnx.TensorProto()
            tensor.CopyFrom(constants[name])
            tensor.name = node.input[place] = f"{name}/{met[name]}"
            graph.initializer.append(tensor)
        met[name] += 1
    return node
