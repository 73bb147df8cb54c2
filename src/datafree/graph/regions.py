"""Parts of a network that run under another setting: `torch.autocast`, `torch.no_grad`.

An exported program keeps each as a graph of its own behind one call, in which no layer would be
found. Here they become part of the network again: autocast's lower precision is left out, as a
quantized network has its own, and gradients are switched off anyway.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import fx
from torch.fx.node import map_arg

from datafree.graph._exported import attribute

_PLACES = {"wrap_with_autocast": 4, "wrap_with_set_grad_enabled": 1}
"""By operator, where among its arguments the graph stands; what follows are the graph's inputs."""


def open_regions(exported: fx.GraphModule) -> fx.GraphModule:
    """A copy of `exported` without such calls, their graphs in their places.

    Args:
        exported: what `ExportedProgram.module(check_guards=False)` returns; not changed, its
            tensors are shared.

    Returns:
        A graph module that computes what `exported` computes without autocast.
    """
    if not any(_place(node) for node in exported.graph.nodes):
        return exported
    graph = fx.Graph()
    # It takes and returns what the model does, not the flat tuples of the graph.
    graph.set_codegen(exported.graph._codegen)  # pyright: ignore[reportPrivateUsage]
    known: dict[fx.Node, Any] = {}
    graph.output(_copied(exported, exported.graph, graph, known))
    opened = fx.GraphModule(exported, graph)
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    opened.recompile()
    return opened


def _place(node: fx.Node) -> int | None:
    return _PLACES.get(getattr(node.target, "__name__", "")) if node.op == "call_function" else None


def _copied(
    owner: fx.GraphModule, source: fx.Graph, graph: fx.Graph, known: dict[fx.Node, Any]
) -> Any:
    """Copy the nodes of `source`, those of regions in their places; its output.

    Args:
        owner: whose attributes `source` names.
        source: copied.
        graph: copied to.
        known: what nodes of `source` are in `graph`; added to.
    """
    for node in source.nodes:
        if node.op == "output":
            return map_arg(node.args[0], known.__getitem__)
        if node in known:
            continue
        place = _place(node)
        if place is not None:
            known[node] = _opened(owner, node, place, graph, known)
        elif node.target is operator.getitem and isinstance(known.get(node.args[0]), tuple | list):
            known[node] = known[node.args[0]][node.args[1]]
        else:
            known[node] = graph.node_copy(node, known.__getitem__)
    return None


def _opened(
    owner: fx.GraphModule, call: fx.Node, place: int, graph: fx.Graph, known: dict[fx.Node, Any]
) -> Any:
    """The nodes of one region; its results."""
    inside = attribute(owner, str(call.args[place].target))  # pyright: ignore
    given = [known[node] for node in call.args[place + 1 :]]  # pyright: ignore
    taken = (node for node in inside.graph.nodes if node.op == "placeholder")
    return _copied(inside, inside.graph, graph, dict(zip(taken, given, strict=True)))
