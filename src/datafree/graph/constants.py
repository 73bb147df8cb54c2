"""What a graph computes from parameters alone: weight norms, standardised kernels, position tables.

Done once here, a convolution with a computed weight becomes an ordinary one, which can be
quantized; left in the graph it would silently stay float.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload  # pyright: ignore[reportPrivateUsage]
from torch.fx.node import map_arg

from datafree.graph._exported import attach, attribute, caller, writes
from datafree.tensors import is_taken


def fold_constants(exported: fx.GraphModule) -> fx.GraphModule:
    """A copy of `exported` in which tensors that depend on no input are attributes.

    The weight a layer computes gets the path of that layer, ``blocks.0.conv.weight``.

    Args:
        exported: what `ExportedProgram.module(check_guards=False)` returns; not changed, its
            tensors are shared.

    Returns:
        A graph module with the same outputs, bit for bit.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(exported.graph, {}))
    written = {node.args[0] for node in graph.nodes if writes(node)}
    known: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op == "get_attr" and node not in written:
            known[node] = attribute(exported, str(node.target))
        elif _is_pure(node) and node not in written and _depends_on(node, known):
            known[node] = _value(node, known)
    folded = fx.GraphModule(exported, graph)
    for node, value in known.items():
        if node.op == "call_function" and isinstance(value, Tensor):
            _replace(folded, node, value, known)
    graph.eliminate_dead_code(
        is_impure_node=lambda n: n.op in ("placeholder", "output") or writes(n)
    )
    folded.recompile()
    return folded


def _replace(
    folded: fx.GraphModule, node: fx.Node, value: Tensor, known: dict[fx.Node, Any]
) -> None:
    users = [user for user in node.users if user not in known]
    if not users:
        return
    path = _path(folded, users[0], value)
    if not is_taken(folded, path):
        attach(folded, path, nn.Parameter(value.detach().clone(), requires_grad=False))
    with folded.graph.inserting_before(node):
        constant = folded.graph.get_attr(path)
    constant.meta = dict(node.meta)
    for user in users:
        user.replace_input_with(node, constant)


def _path(folded: fx.GraphModule, user: fx.Node, value: Tensor) -> str:
    """Where `value` goes: the weight of the layer that reads it, under a name that is free.

    A layer called twice computes its weight twice; the second is the first.
    """
    called, _ = caller(user)
    layer = "".join(f"{part}." for part in called.split(".") if part)
    path, count = f"{layer}weight", 0
    while is_taken(folded, path) and not torch.equal(attribute(folded, path), value):
        count += 1
        path = f"{layer.removesuffix('.')}{'' if count == 1 else count}_weight"
    return path


def _value(node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    arguments = map_arg(node.args, lambda source: known[source])
    keywords = map_arg(node.kwargs, lambda source: known[source])
    with torch.no_grad():
        return node.target(*arguments, **keywords)  # pyright: ignore[reportCallIssue]


def _depends_on(node: fx.Node, known: dict[fx.Node, Any]) -> bool:
    """Whether `node` reads something, and nothing but `known` nodes."""
    return bool(node.all_input_nodes) and all(source in known for source in node.all_input_nodes)


def _is_pure(node: fx.Node) -> bool:
    if node.op != "call_function" or writes(node):
        return False
    random = torch.Tag.nondeterministic_seeded
    return not (isinstance(node.target, OpOverload) and random in node.target.tags)
