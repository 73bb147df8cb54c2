"""Sizes are not values: a graph that reads each size off the tensor that is reshaped.

``x.view(x.size(0), -1)`` behind twenty layers is exported with the size of the network's *input*,
as if the classifier looked at the image. Read off the tensor at hand instead, no part of the graph
reaches back, and a network can be cut into blocks wherever one tensor carries everything.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload  # pyright: ignore[reportPrivateUsage]

from datafree.graph._exported import writes

_SIZE = torch.ops.aten.sym_size.int
_IMAGES_FIRST, _RANK = "images_first", "rank"


def localise_sizes(exported: fx.GraphModule) -> fx.GraphModule:
    """A copy of `exported` whose sizes are those of the tensors they are used with.

    A call that takes sizes (a view, an expansion, a sum with zeros) gets them from a tensor that it
    reads anyway: from a dimension of the same symbolic size, or from a multiple of it. What is
    computed from sizes alone, such as a class token for every image, is computed again there. Where
    no tensor tells, a size stays as it was.

    Args:
        exported: what `ExportedProgram.module(check_guards=False)` returns, its nodes with the
            shapes that export wrote into their `meta`; not changed, its tensors are shared.

    Returns:
        A graph module with the same outputs, bit for bit.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(exported.graph, {}))
    sized, constant = _without_values(graph)
    for node in list(graph.nodes):
        sources = [n for n in node.all_input_nodes if n not in sized and n not in constant]
        if node in sized or node.op == "output" or not sources:
            continue
        here = _Here(node, tuple(sources), sized)
        for size in [n for n in node.all_input_nodes if n in sized]:
            node.replace_input_with(size, here.computed(size))
    localised = fx.GraphModule(exported, graph)
    localised.recompile()
    return localised


def is_size(node: fx.Node) -> bool:
    """Whether `node` is the size of a tensor, or a number computed from sizes alone."""
    if node.op != "call_function":
        return False
    if node.target is _SIZE:
        return True
    numbers = getattr(node.target, "__module__", "") == "_operator"
    sources = node.all_input_nodes
    return numbers and bool(sources) and all(is_size(source) for source in sources)


def readers(node: fx.Node) -> list[fx.Node]:
    """The users of `node` that look at its values, not only at its size."""
    return [user for user in node.users if not is_size(user)]


def values_read(node: fx.Node) -> list[fx.Node]:
    """The inputs of `node` without those that are sizes."""
    return [source for source in node.all_input_nodes if not is_size(source)]


def mark_images(node: fx.Node, exported: fx.Node, images: fx.Node | None) -> None:
    """Note in the `meta` of `node` its rank, and whether its first dimension counts images.

    Args:
        node: of the canonical graph.
        exported: the node it was made from, with the shape that export wrote into its `meta`.
        images: the input of the exported graph.
    """
    value = exported.meta.get("val")
    if isinstance(value, Tensor):
        node.meta[_RANK] = value.ndim
    counted = None if images is None else _length(images.meta.get("val"))
    if counted is not None:
        node.meta[_IMAGES_FIRST] = _length(value) == counted


def rank_of(node: fx.Node, default: int) -> int:
    """How many dimensions the value of `node` has, as far as its graph remembers."""
    return node.meta.get(_RANK, default)


def _length(value: Any) -> Any:
    """The symbol of the first dimension of a tensor, if that is not a fixed number."""
    first = value.shape[0] if isinstance(value, Tensor) and value.ndim else None
    return first.node.expr if isinstance(first, torch.SymInt) else None


def counts_images(node: fx.Node) -> bool:
    """Whether the first dimension of `node` counts images, as far as its graph remembers.

    It does not for windows of images side by side, nor for several tensors at once.
    """
    return node.meta.get(_IMAGES_FIRST, not is_size(node))


def _without_values(graph: fx.Graph) -> tuple[set[fx.Node], set[fx.Node]]:
    """The nodes that depend on sizes but on no image, and those that depend on neither."""
    changed = _written(graph)
    sized: set[fx.Node] = set()
    constant: set[fx.Node] = set()
    for node in graph.nodes:
        sources = node.all_input_nodes
        if node.op == "get_attr":
            constant.add(node)
        elif node.op != "call_function" or node in changed or _draws(node):
            continue
        elif node.target is _SIZE:
            sized.add(node)
        elif all(source in sized or source in constant for source in sources):
            (sized if any(source in sized for source in sources) else constant).add(node)
    return sized, constant


def _written(graph: fx.Graph) -> set[fx.Node]:
    """The calls whose tensors are changed in place, and all that they were made from."""
    found: set[fx.Node] = set()
    waiting = [node for node in graph.nodes if writes(node)]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [n for n in node.all_input_nodes if n.target is not _SIZE]
    return found


def _draws(node: fx.Node) -> bool:
    random = torch.Tag.nondeterministic_seeded
    return isinstance(node.target, OpOverload) and random in node.target.tags


@dataclass(frozen=True)
class _Here:
    """One call, and the tensors it reads whose sizes are known there.

    Attributes:
        reader: the call.
        sources: its inputs that depend on the image.
        sized: all nodes that depend on sizes alone.
    """

    reader: fx.Node
    sources: tuple[fx.Node, ...]
    sized: set[fx.Node]

    def computed(self, node: fx.Node) -> fx.Node:
        """`node`, one of `sized`, computed from what is here; itself where that cannot be."""
        if node not in self.sized:
            return node
        read = self._read_off(node.meta.get("val"))
        if read is not None or node.target is _SIZE:
            return read or node
        copies = {source: self.computed(source) for source in node.all_input_nodes}
        if all(copy is source for source, copy in copies.items()):
            return node
        with self.reader.graph.inserting_before(self.reader):
            return self.reader.graph.node_copy(node, lambda source: copies[source])

    def _read_off(self, size: Any) -> fx.Node | None:
        """A node with the number `size`, read off a tensor that is here, if one tells it."""
        if not isinstance(size, torch.SymInt):
            return None
        found: list[tuple[int, fx.Node, int]] = []
        for source in self.sources:
            value = source.meta.get("val")
            for place, length in enumerate(value.shape if isinstance(value, Tensor) else ()):
                if isinstance(length, torch.SymInt):
                    times = length.node.expr / size.node.expr
                    if times.is_Integer and int(times) >= 1:
                        found.append((int(times), source, place))
        if not found:
            return None
        times, source, place = min(found, key=lambda one: one[0])
        graph = self.reader.graph
        with graph.inserting_before(self.reader):
            read = graph.call_function(_SIZE, (source, place))
            return read if times == 1 else graph.call_function(operator.floordiv, (read, times))
