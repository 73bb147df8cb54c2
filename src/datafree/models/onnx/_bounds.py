"""Files that are small and claim to be large: what they would become is counted before it is made.

Functions that call each other double in each level, weights of one external file can be listed a
thousand times, and ``Expand``, ``Tile`` and their like make terabytes of two numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir

from datafree.errors import ModelError

MOST_NODES = 50_000
"""After functions were written out; large networks have some thousands."""
MOST_COMPUTED = 2**26
"""Numbers in one constant that a file does not hold but computes."""
MOST_VALUES = 2**27
"""Numbers in one tensor for one item."""
DEEPEST = 8
"""Graphs in each other, as bodies of nodes."""
_EXTERNAL = 2**28
_SMALL = 1024
_MAKERS = frozenset(
    """
    AffineGrid Bernoulli BlackmanWindow CenterCropPad Col2Im DFT EyeLike HammingWindow HannWindow
    If ImageDecoder Loop MaxUnpool MelWeightMatrix Multinomial OneHot Pad RandomNormal
    RandomNormalLike RandomUniform RandomUniformLike Resize RoiAlign STFT Scan Upsample
    """.split()  # noqa: SIM905 - a list of words
)
"""Operators whose results can be larger than all that they read, and which are not computed here:
where they read constants only, they stay."""
Key = tuple[str, str]


def check_functions(model: onnx.ModelProto, path: Path) -> None:
    """Refuse functions that call themselves, or become too many nodes, and graphs in graphs.

    Raises:
        ModelError: they do.
    """
    graphs, depth = [model.graph], 0
    while graphs:
        attributes = [part for graph in graphs for node in graph.node for part in node.attribute]
        graphs = [inner for part in attributes for inner in (part.g, *part.graphs) if inner.node]
        depth += 1
        if depth > DEEPEST:
            raise ModelError(f"{path} has graphs within graphs, deeper than {DEEPEST} levels")
    bodies = {(one.domain, one.name): one.node for one in model.functions}
    known: dict[Key, int] = {}
    if _expanded(model.graph.node, bodies, known, ()) > MOST_NODES:
        raise ModelError(f"{path} has functions that become more than {MOST_NODES} nodes")


def _expanded(
    nodes: Any, bodies: Mapping[Key, Any], known: dict[Key, int], within: tuple[Key, ...]
) -> int:
    """Number of nodes once functions are written out, of one that calls itself too many."""
    count = 0
    for node in nodes:
        key = (node.domain, node.op_type)
        if key in within:
            return MOST_NODES + 1
        if key in bodies and key not in known:
            known[key] = _expanded(bodies[key], bodies, known, (*within, key))
        count += known.get(key, 1)
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                count += _expanded(graph.node, bodies, known, within)
    return count


def check_external(model: onnx.ModelProto, folder: Path) -> None:
    """Refuse external data that are read over and over.

    Raises:
        ValueError: they are.
    """
    read, files = 0, dict[str, int]()
    for tensor in model.graph.initializer:
        said = {entry.key: entry.value for entry in tensor.external_data}
        if "location" not in said:
            continue
        place = folder / said["location"]
        size = place.stat().st_size if place.is_file() else 0
        files[said["location"]] = size
        read += int(said.get("length") or size)
    held = sum(files.values())
    if read > max(_EXTERNAL, 2 * held):
        raise ValueError(f"{read} bytes are claimed of files that have {held}")


def can_be_computed(node: onnx_ir.Node, path: Path) -> bool:
    """Whether a node of constants has a result that is not larger than `MOST_COMPUTED`.

    Raises:
        ModelError: it makes a larger one.
    """
    if node.op_type in _MAKERS:
        return False
    size = _computed(node)
    if size > MOST_COMPUTED:
        raise ModelError(
            f"{path} computes a constant of {size} numbers, by {node.op_type} (node"
            f" {node.name or '?'}): {MOST_COMPUTED} are the most"
        )
    return True


def _computed(node: onnx_ir.Node) -> int:
    """Numbers that a node of constants makes, or more."""
    given = [one for one in node.inputs if one is not None]
    shapes = [one.shape.numpy() if one.shape is not None else () for one in given]
    if node.op_type == "ConstantOfShape":
        return _product(_numbers(given[0]))
    if node.op_type == "Range":
        start, limit, step = (_numbers(one)[0] for one in given)
        return max(0, math.ceil((limit - start) / step)) if step else 0
    if node.op_type == "Expand":
        wanted, own = _numbers(given[1]), list(shapes[0])
        rank = max(len(wanted), len(own))
        both = zip([1] * (rank - len(own)) + own, [1] * (rank - len(wanted)) + wanted, strict=True)
        return _product([max(first, second) for first, second in both])
    if node.op_type == "Tile":
        return _product(shapes[0]) * _product(_numbers(given[1]))
    known = [one.shape for one in node.outputs if one.shape is not None and one.shape.is_static()]
    if len(known) == len(node.outputs):
        return sum(_product(shape.numpy()) for shape in known)
    return _product([_product(shape) for shape in shapes])


def _numbers(value: onnx_ir.Value) -> list[Any]:
    constant = value.const_value
    if constant is None or constant.size > _SMALL:
        return [MOST_COMPUTED + 1]
    return [one.item() for one in np.ravel(constant.numpy())]


def _product(sizes: Any) -> int:
    return math.prod(max(int(size), 0) for size in sizes)


def check_sizes(model: onnx.ModelProto, batch: int, path: Path) -> None:
    """Refuse a network that makes a tensor of more than `MOST_VALUES` numbers of one item.

    Args:
        model: constants folded, for `batch` items.
        batch: number of items; 1 where the file is fixed to so many, which are always computed.
        path: of the file, for messages.

    Raises:
        ModelError: it does; the message names the tensor.
    """
    for value in _inferred(model).graph.value_info:
        dims = value.type.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            size = _product(dim.dim_value for dim in dims)
            if size > MOST_VALUES * batch:
                maker = next(one for one in model.graph.node if value.name in one.output)
                raise ModelError(
                    f"{path} makes {size // batch} numbers of one item, by {maker.op_type} (node"
                    f" {maker.name or '?'}): {MOST_VALUES} are the most"
                )


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with the shapes of its values, without large weights."""
    light = onnx.ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.graph.name = "light"
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    given = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if _product(tensor.dims) <= _SMALL:
            light.graph.initializer.append(tensor)
        elif tensor.name not in given:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            light.graph.input.append(value)
    return onnx.shape_inference.infer_shapes(light, data_prop=True)
