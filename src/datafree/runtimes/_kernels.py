"""From what a runtime carries out back to the layers of the file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnx import NodeProto

from datafree.runtimes._graph import Graph
from datafree.runtimes.base import KEPT, FloatLayer, Kernels

_FAR = 4  # nodes behind a layer that a runtime may name in its place
Reason = Callable[[Graph, NodeProto], tuple[str, str]]
"""Why a layer runs in float: what others share, and what is its own."""


@dataclass(frozen=True)
class Executed:
    """One step of a runtime.

    Attributes:
        nodes: indices of the file's nodes it stands for, as far as its name says.
        layer: it is a convolution, a matrix product or a recurrent layer.
        integer: it multiplies integers.
        time: it took, in any unit; None if not known.
    """

    nodes: frozenset[int]
    layer: bool
    integer: bool
    time: float | None = None


def kernels(graph: Graph, executed: Sequence[Executed], reason: Reason) -> Kernels:
    """Which layers of `graph` got integer kernels, and why the others did not.

    Args:
        graph: of the file.
        executed: all a runtime does.
        reason: of this runtime.
    """
    integer: list[int] = []
    floats: list[FloatLayer] = []
    layers = graph.layers()
    total = sum(step.time or 0.0 for step in executed)
    for index in layers:
        node = graph.nodes[index]
        found = _executed(graph, index, executed)
        if found is not None and found.integer:
            integer.append(index)
            continue
        why, detail = (KEPT, "") if graph.is_kept(node) else reason(graph, node)
        own = _time(graph, index, found, executed) if total else None
        share = None if own is None else own / total
        floats.append(FloatLayer(graph.label(node), node.op_type, why, detail, share))
    products = graph.products()
    done = [_executed(graph, index, executed) for index in products]
    return Kernels(
        integer=len(integer),
        total=len(layers),
        floats=tuple(floats),
        integer_products=sum(step is not None and step.integer for step in done),
        products=len(products),
        depthwise=sum(_depthwise(graph, graph.nodes[index]) for index in layers),
        shifted=sum(_shifted(graph, graph.nodes[index]) for index in integer),
        scattered=sum(_scattered(graph, graph.nodes[index]) for index in integer),
    )


def _executed(graph: Graph, index: int, executed: Sequence[Executed]) -> Executed | None:
    """The step that carries node `index` out; its name may be that of what was fused behind it."""
    for _ in range(_FAR):
        for step in executed:
            if step.layer and index in step.nodes:
                return step
        readers = graph.readers.get(graph.nodes[index].output[0], [])
        if len(readers) != 1:
            return None
        index = readers[0]
    return None


def _time(
    graph: Graph, index: int, found: Executed | None, executed: Sequence[Executed]
) -> float | None:
    """Time of a layer and of what makes its weights anew in every run."""
    if found is None:
        return None
    before: set[int] = set()
    names = [name for name in graph.nodes[index].input if name in graph.constants]
    while names:
        maker = graph.maker.get(names.pop())
        if maker is not None and maker not in before:
            before.add(maker)
            names.extend(graph.nodes[maker].input)
    own = [step for step in executed if step is found or (step.nodes and step.nodes <= before)]
    return sum(step.time or 0.0 for step in own)


def _depthwise(graph: Graph, node: NodeProto) -> bool:
    groups = next((int(a.i) for a in node.attribute if a.name == "group"), 1)
    return node.op_type == "Conv" and groups > 1 and groups == graph.filters(node)


def _shifted(graph: Graph, node: NodeProto) -> bool:
    codes = graph.weight_codes(node)
    if codes is None:
        return False
    return codes.type_name.startswith("u") or (codes.zero is not None and bool(codes.zero.any()))


def _scattered(graph: Graph, node: NodeProto) -> bool:
    codes = graph.weight_codes(node)
    if codes is None or codes.zero is None or not _depthwise(graph, node):
        return False
    return bool((codes.zero != codes.zero.flat[0]).any())
