"""What a network returns: one tensor inside, the network's own structure outside.

A graph whose network returns more than logits ends in `side_by_side`, one tensor (B, numbers) of
all it returns. That is the only form the stages know. Files and people get the tensors by
themselves (`separate`, `structured`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.graph import CodeGen, _PyTreeCodeGen, _PyTreeInfo  # pyright: ignore[reportPrivateUsage]
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves

from datafree.config.outputs import Output
from datafree.graph.inputs import apart, inputs_of, packed_again, with_graph
from datafree.losses import pack, parts

_META = "structure"


@dataclass(frozen=True)
class Structure:
    """How what a network returns is put together.

    Attributes:
        tree: of all leaves, as pytrees have it.
        leaves: of the tree: `PER_IMAGE` for each of the tensors that stand side by side, in their
            order, or else what is returned for all images alike.
        heads: what those tensors are.
    """

    tree: TreeSpec
    leaves: tuple[Any, ...]
    heads: tuple[Output, ...]

    def __deepcopy__(self, memo: Any) -> Structure:
        return self  # never changed; torch warns where a tree is copied

    def filled(self, tensors: Iterable[Any]) -> list[Any]:
        """All leaves, with the tensors of images in their places."""
        given = iter(tensors)
        return [next(given) if leaf is PER_IMAGE else leaf for leaf in self.leaves]


class _PerImage:
    """Stays one and the same where it is copied."""

    def __deepcopy__(self, memo: Any) -> _PerImage:
        return self


PER_IMAGE = _PerImage()
"""Stands for a tensor of the images in a structure."""


def side_by_side(*tensors: Tensor) -> Tensor:
    """(B, numbers) in float of tensors of B images each."""
    return torch.cat([tensor.flatten(1).float() for tensor in tensors], 1)


def lined_up(returned: Any) -> Tensor:
    """All tensors that a network or a file returned, in any structure, side by side."""
    return side_by_side(*(leaf for leaf in tree_leaves(returned) if isinstance(leaf, Tensor)))


def is_end(node: fx.Node) -> bool:
    """Whether `node` is where a graph returns what it is given."""
    return node.op == "output" or node.target is side_by_side


def structure_of(graph_module: fx.GraphModule) -> Structure | None:
    """How the network's values are put together; None where it returns logits."""
    return graph_module.meta.get(_META)


def heads_of(graph_module: fx.GraphModule) -> tuple[Output, ...]:
    """What stands side by side in what a graph returns; empty where it returns logits."""
    structure = structure_of(graph_module)
    return () if structure is None else structure.heads


def joined(graph_module: fx.GraphModule, structure: Structure) -> None:
    """Let a graph that returns tensors return them side by side, in place."""
    (output,) = graph_module.graph.find_nodes(op="output")
    with graph_module.graph.inserting_before(output):
        tensors = tuple(output.args[0])  # pyright: ignore[reportArgumentType]
        node = graph_module.graph.call_function(side_by_side, tensors)
    output.args = (node,)
    graph_module.recompile()
    graph_module.meta[_META] = structure


def separate(graph_module: fx.GraphModule) -> fx.GraphModule:
    """A graph that takes every input by itself, and returns a tuple of its tensors of images.

    Args:
        graph_module: as the stages have it, or as `structured` made it; tensors are shared. One
            that takes an image and returns logits is returned as it is.
    """
    graph_module = apart(graph_module)
    if structure_of(graph_module) is None:
        return graph_module
    graph = copy.deepcopy(graph_module.graph)
    graph.set_codegen(CodeGen())
    (output,) = graph.find_nodes(op="output")
    returned = output.args[0]
    output.args = (tuple(_tensors(output)),)
    _forget(graph, returned)
    return with_graph(graph_module, graph)


def together(graph_module: fx.GraphModule) -> fx.GraphModule:
    """The form the stages know, of a graph in any of the others; tensors are shared."""
    graph_module = packed_again(graph_module)
    structure = structure_of(graph_module)
    (output,) = graph_module.graph.find_nodes(op="output")
    if structure is None or isinstance(output.args[0], fx.Node):
        return graph_module
    graph = copy.deepcopy(graph_module.graph)
    graph.set_codegen(CodeGen())
    (output,) = graph.find_nodes(op="output")
    output.args = (tuple(_tensors(output)),)
    found = with_graph(graph_module, graph)
    joined(found, structure)
    return found


def structured(graph_module: fx.GraphModule) -> fx.GraphModule:
    """A graph that takes and returns what the network does, put together as there.

    Tensors are shared.
    """
    graph_module = apart(graph_module)
    structure = structure_of(graph_module)
    (output,) = graph_module.graph.find_nodes(op="output")
    if structure is None or not isinstance(output.args[0], fx.Node):
        return graph_module
    graph = copy.deepcopy(graph_module.graph)
    (output,) = graph.find_nodes(op="output")
    leaves = structure.filled(_tensors(output))
    constants: dict[str, Tensor] = {}
    for place, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            constants[f"output_{place}_constant"] = leaf
            with graph.inserting_before(output):
                leaves[place] = graph.get_attr(f"output_{place}_constant")
    returned = output.args[0]
    output.args = (leaves,)
    _forget(graph, returned)
    names = [str(node.target) for node in graph.find_nodes(op="placeholder")]
    _, given = tree_flatten(((0,) * len(names), {}))
    graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(names, given, structure.tree)))
    return with_graph(graph_module, graph, constants)


def rebuilt(
    graph_module: fx.GraphModule, predict: Callable[[Tensor], Tensor]
) -> Callable[..., Any]:
    """`predict`, of the form that stages know, as a function that takes what the network does.

    It returns what the network returns.

    Args:
        graph_module: it belongs to.
        predict: packed inputs (B, C, H, W) to (B, numbers).
    """
    structure, inputs = structure_of(graph_module), inputs_of(graph_module)
    if structure is None and not inputs:
        return predict

    def call(*given: Tensor, **named: Tensor) -> Any:
        tensors = (*given, *(named[one.name] for one in inputs[len(given) :]))
        found = predict(pack(tensors, inputs))
        if structure is None:
            return found
        return structure.tree.unflatten(structure.filled(parts(found, structure.heads)))

    return call


def _tensors(output: fx.Node) -> list[fx.Node]:
    """The tensors of images a graph returns, in any of its forms, as they stand side by side."""
    value: Any = output.args[0]
    if isinstance(value, fx.Node):
        return list(value.args) if value.target is side_by_side else [value]  # pyright: ignore
    return [leaf for leaf in value if isinstance(leaf, fx.Node) and leaf.op != "get_attr"]


def _forget(graph: fx.Graph, node: Any) -> None:
    """Remove the node that put tensors side by side."""
    if isinstance(node, fx.Node) and node.target is side_by_side:
        graph.erase_node(node)
