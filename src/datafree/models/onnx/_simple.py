"""A file made simple before it is converted: sizes known, constants folded, plain names."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
from onnx import numpy_helper
from onnx_ir.passes import common
from onnxscript import optimizer

from datafree.models.onnx._bounds import can_be_computed, check_sizes
from datafree.models.onnx._file import OnnxFile, subgraphs

_BATCHES = (1009, 1013, 1019, 1021, 1031, 1033, 1039, 1049, 1051, 1061, 1063, 1069)
_FOLDED = ("ConstantOfShape", "Range", "Shape", "Size")


@dataclass(frozen=True)
class Simple:
    """A network with constants folded, whose names are plain: v0, v1, ...

    Attributes:
        model: the network.
        batch: a prime number of images that no size in the file is a multiple of.
        fixed: number of images that the constants of the file were made for; `batch` where the file
            takes any.
        names: what each plain name is called in the file.
        weights: by first output of a node, what its constants are called in the file; those that
            are added behind it count as its own too.
    """

    model: onnx.ModelProto
    batch: int
    fixed: int
    names: dict[str, str]
    weights: dict[str, list[str]]


def simplify(file: OnnxFile, shapes: Sequence[tuple[int, ...]]) -> Simple:
    """`file` for items of these shapes.

    A file that takes any number of images is folded for a prime number of them: what is a multiple
    of that counts images, all else does not. Batch norms stay where they are.

    Args:
        file: what was read; not changed.
        shapes: of an item of every input, channels first.
    """
    model = onnx.ModelProto()
    model.CopyFrom(file.model)
    batch = _free_prime(model, shapes)
    fixed = file.batch or batch
    sizes = {one.name: one.stored(shape) for one, shape in zip(file.inputs, shapes, strict=True)}
    for value in model.graph.input:
        if value.name in sizes:
            tensor = value.type.tensor_type
            tensor.elem_type = onnx.TensorProto.FLOAT  # bytes are numbers, and a Cast keeps those
            for dim, size in zip(tensor.shape.dim, (fixed, *sizes[value.name]), strict=True):
                dim.dim_value = size
    del model.graph.value_info[:]  # sizes of another number of images
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    model = _folded(model, file.path)
    check_sizes(model, 1 if file.batch else fixed, file.path)
    names = _rename(model)
    return Simple(model, batch, fixed, names, _weights(model.graph, names))


def _folded(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    def should_fold(node: onnx_ir.Node) -> bool | None:
        """Whether to fold a node of constants; None leaves it to its size."""
        if not can_be_computed(node, path):
            return False
        return node.op_type in _FOLDED or None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of NumPy, where a constant overflows
        graph = onnx_ir.from_proto(model)
        common.RemoveInitializersFromInputsPass()(graph)
        optimizer.fold_constants(graph, onnx_shape_inference=True, should_fold=should_fold)
        common.LiftConstantsToInitializersPass(size_limit=0)(graph)
        common.IdentityEliminationPass()(graph)
        optimizer.remove_unused_nodes(graph)
        return onnx_ir.to_proto(graph)


def _free_prime(model: onnx.ModelProto, shapes: Sequence[tuple[int, ...]]) -> int:
    """A number of images that nothing else in the network can be taken for."""
    taken = {size for shape in shapes for size in shape}
    for tensor in model.graph.initializer:
        taken.update(tensor.dims)
        if tensor.data_type == onnx.TensorProto.INT64 and np.prod(tensor.dims) <= 64:
            taken.update(int(number) for number in numpy_helper.to_array(tensor).ravel())
    return next(p for p in _BATCHES if all(size % p or not size for size in taken))


def _rename(model: onnx.ModelProto) -> dict[str, str]:
    """Give every value of `model` a plain name; what each was called before."""
    plain: dict[str, str] = {"": ""}

    def short(name: str) -> str:
        return plain.setdefault(name, f"v{len(plain)}")

    def walk(graph: onnx.GraphProto) -> None:
        for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            value.name = short(value.name)
        for node in graph.node:
            node.input[:] = [short(name) for name in node.input]
            node.output[:] = [short(name) for name in node.output]
            for inner in subgraphs(node):
                walk(inner)

    walk(model.graph)
    return {short: name for name, short in plain.items() if name}


def _weights(graph: onnx.GraphProto, names: dict[str, str]) -> dict[str, list[str]]:
    constants = {tensor.name for tensor in graph.initializer}
    found: dict[str, list[str]] = {}
    for node in graph.node:
        own = [names[name] for name in node.input if name in constants]
        before = [found[name] for name in node.input if node.op_type == "Add" and name in found]
        found[node.output[0]] = [*own, *(name for more in before for name in more)]
        if own and before:
            before[0] += own
    return found
