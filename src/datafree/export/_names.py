"""Names people can read: nodes and tensors bear the path of the layer that they compute."""

from __future__ import annotations

import ast
from collections import Counter

import onnx

_SCOPES = "pkg.torch.onnx.name_scopes"
_SUFFIXES = {"QuantizeLinear": "quantized", "Clip": "clipped", "DequantizeLinear": "dequantized"}


def name_after_layers(model: onnx.ModelProto) -> None:
    """Rename nodes and the tensors between them, in place.

    The last node of a layer and what it computes are called ``layer1.0.conv1``, others of the same
    layer ``layer1.0.conv1/MatMul``; quantizers of a tensor are called after it, and operators that
    belong to no layer as torch calls them. Inputs, outputs and initializers keep their names.

    Args:
        model: as traced, the paths of layers in its metadata.
    """
    graph = model.graph
    paths = [_path(node) for node in graph.node]
    left = Counter(path for path in paths if path)
    fixed = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    activations = {n.name for n in graph.node if n.op_type in _SUFFIXES and "_quantizer" in n.name}
    taken, renamed = set(fixed), dict[str, str]()
    for node, path in zip(graph.node, paths, strict=True):
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
        if path:
            left[path] -= 1
            wanted = f"{path}/{node.op_type}" if left[path] else path
        elif node.name in activations:
            wanted = f"{_bare(node.input[0])}/{_SUFFIXES[node.op_type]}"
        else:
            wanted = node.name.removeprefix("node_")
        node.name = _free(wanted, taken)
        for place, name in enumerate(node.output):
            if name and name not in fixed:
                renamed[name] = node.name if not place else f"{node.name}:{place}"
                node.output[place] = renamed[name]


def _path(node: onnx.NodeProto) -> str:
    """The layer that `node` belongs to, as torch's exporter notes it; empty if it is none."""
    told = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "")
    scopes: list[str] = ast.literal_eval(told) if told else []
    return scopes[-2] if len(scopes) > 1 else ""


def _bare(name: str) -> str:
    """A tensor's name without what quantizers added to it."""
    stem, _, last = name.rpartition("/")
    return stem if last in _SUFFIXES.values() else name


def _free(wanted: str, taken: set[str]) -> str:
    """`wanted`, with a number where there is another of this name."""
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}#{number}"
    taken.add(name)
    return name
