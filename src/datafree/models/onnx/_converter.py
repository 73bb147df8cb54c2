"""onnx2pytorch: a module for every node of a simplified file; what it lacks is refused by name."""

from __future__ import annotations

import importlib
import warnings
from functools import cache
from types import ModuleType
from typing import Any

import onnx

from datafree.bounds import first_line
from datafree.errors import ModelError
from datafree.models.hubs import operators_of_torchvision
from datafree.models.onnx._converted import Converted
from datafree.models.onnx._file import OnnxFile, told
from datafree.models.onnx._simple import Simple

_WEIGHTS = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "BatchNormalization": (1, 2, 3, 4),
    "InstanceNormalization": (1, 2),
}  # inputs that the converter takes for weights, wherever they come from


def convert(simple: Simple, file: OnnxFile) -> Converted:
    """The network of `simple` as a module.

    Args:
        simple: the file made simple; its graph is changed where the converter merges nodes.
        file: as it was read.

    Raises:
        ModelError: the converter is not installed or lacks an operator, or weights of a layer are
            computed; the message names operator and node.
    """
    converter = library()
    graph = simple.model.graph
    _check_weights(graph, file)
    _shield(graph)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # What it does not know it looks for among the functions of torch: never that.
            warnings.filterwarnings("error", "No explicit conversion", RuntimeWarning)
            module: Any = converter.ConvertModel(simple.model)
    except Exception as error:  # noqa: BLE001 - whatever the converter raises
        raise ModelError(
            f"{file.path} cannot be read: onnx2pytorch does not convert"
            f" {_culprit(simple)}: {first_line(error)}"
        ) from None
    return Converted(module.eval(), simple, file.inputs)


@cache
def library() -> ModuleType:
    """onnx2pytorch, imported once.

    Raises:
        ModelError: it is not installed, or cannot be imported.
    """
    operators_of_torchvision()
    try:
        return importlib.import_module("onnx2pytorch")
    except ModuleNotFoundError as error:
        raise ModelError(
            f"ONNX files are read with onnx2pytorch, and {error.name} is not installed: "
            "pip install 'datafree[onnx]'"
        ) from None
    except Exception as error:
        raise ModelError(f"onnx2pytorch cannot be imported: {first_line(error)}") from error


def _check_weights(graph: onnx.GraphProto, file: OnnxFile) -> None:
    """Refuse a layer whose weights the network computes."""
    known = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        given = [place for place in _WEIGHTS.get(node.op_type, ()) if place < len(node.input)]
        if any(node.input[place] and node.input[place] not in known for place in given):
            raise ModelError(
                f"{file.path} cannot be read: the weights of {told(node)} are computed from images"
            )


def _shield(graph: onnx.GraphProto) -> None:
    """Hide constants that the converter would take for the weight or bias of a linear layer.

    It does so with every constant factor of a MatMul and every constant added behind one.
    """
    sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    hidden: list[onnx.NodeProto] = []
    before: onnx.NodeProto | None = None
    for node in graph.node:
        constant = [place for place, name in enumerate(node.input) if name in sizes]
        if node.op_type == "MatMul":
            wrong = constant != [1] or len(sizes[node.input[1]]) != 2
        elif node.op_type == "Add" and before is not None and before.op_type == "MatMul":
            width = sizes.get(before.input[1], (0,))[-1:]
            wrong = any(sizes[node.input[place]] != width for place in constant)
        else:
            wrong = False
        for place in constant if wrong else ():
            name = f"hidden{len(hidden)}"
            hidden.append(onnx.helper.make_node("Identity", [node.input[place]], [name]))
            node.input[place] = name
        before = node
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*hidden, *rest])


def _culprit(simple: Simple) -> str:
    """The first node that cannot be converted by itself."""
    operations = importlib.import_module("onnx2pytorch.convert.operations")
    constants = {tensor.name: tensor for tensor in simple.model.graph.initializer}
    versions = {item.domain: item.version for item in simple.model.opset_import}
    version = versions.get("", versions.get("ai.onnx", 0))
    for node in simple.model.graph.node:
        graph = onnx.GraphProto()
        graph.node.add().CopyFrom(node)
        graph.initializer.extend(constants[name] for name in node.input if name in constants)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)
                list(operations.convert_operations(graph, version, 0, False))
        except Exception:  # noqa: BLE001 - this is the one
            return told(node)
    return "one of its operators"
