"""Layers that were asked to stay in float, kept apart from what runtimes would make of them.

onnxruntime rounds float weights to int8, one scale for all, where a convolution or product stands
between DequantizeLinear and QuantizeLinear. A Clip that clips nothing, in front of such a layer,
hides the pattern and changes no value.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import helper, numpy_helper

_LAYERS = ("Conv", "Gemm")
_BOUND = "float_layers.lowest"


def keep_apart(model: onnx.ModelProto, kept: Iterable[str]) -> None:
    """Put a Clip without effect in front of the layers `kept` that read codes, in place.

    Args:
        model: named after layers.
        kept: their paths.
    """
    paths, graph = set(kept), model.graph
    makers = {name: node for node in graph.node for name in node.output}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        path = node.name.partition("#")[0]
        own = path in paths or path.rpartition("/")[0] in paths
        before = makers.get(node.input[0]) if own and node.op_type in _LAYERS else None
        if before is not None and before.op_type == "DequantizeLinear":
            name = f"{node.name}/input"
            nodes.append(helper.make_node("Clip", [node.input[0], _BOUND], [name], name))
            node.input[0] = name
        nodes.append(node)
    if len(nodes) > len(graph.node):
        lowest = np.array(np.finfo(np.float32).min, np.float32)
        graph.initializer.append(numpy_helper.from_array(lowest, _BOUND))
    del graph.node[:]
    graph.node.extend(nodes)
