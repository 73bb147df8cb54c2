"""Cutting a graph into blocks, without knowing the architecture.

A *cut* is a tensor every path from input to output passes through, image by image: right after it
is computed it is the only one still needed. What lies between two cuts is a residual block, an
inception module, an inverted bottleneck, or a single layer.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from torch import fx, nn

from datafree.errors import ModelError
from datafree.graph.sizes import counts_images
from datafree.graph.taps import BatchNorm
from datafree.quant.modules import QUANTIZABLE

ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.ELU, nn.PReLU, nn.SiLU, nn.GELU, nn.Mish,
    nn.Hardswish, nn.Sigmoid, nn.Hardsigmoid, nn.Tanh,
)  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A part of a graph with one input and one output.

    Attributes:
        start: name of the node whose value enters.
        end: name of the node whose value leaves.
        layers: paths of the convolution and linear layers inside, in execution order.
    """

    start: str
    end: str
    layers: tuple[str, ...]

    @property
    def name(self) -> str:
        """The path of the first layer, for people."""
        return " … ".join(dict.fromkeys((*self.layers[:1], *self.layers[-1:])))


def find_blocks(graph_module: fx.GraphModule) -> list[Block]:
    """The blocks of a float graph in execution order; every one holds a layer, all layers are held.

    A block takes in the activation functions and affine steps that directly follow it; pooling and
    reshaping go to the block after. Time is linear in the number of edges.

    Args:
        graph_module: the canonical graph, folded or not.

    Raises:
        ModelError: the graph has no convolution or linear layer.
    """
    cuts = _cuts(graph_module)
    position = {node: index for index, node in enumerate(graph_module.graph.nodes)}
    layers = [node for node in graph_module.graph.nodes if _is_layer(graph_module, node)]
    if not layers:
        raise ModelError("the network has no convolution or linear layer to reconstruct")
    blocks: list[Block] = []
    start = cuts[0]
    for before, cut in itertools.pairwise(cuts):
        inside = [n for n in layers if position[before] < position[n] <= position[cut]]
        if inside:
            paths = tuple(dict.fromkeys(str(node.target) for node in inside))
            blocks.append(Block(start.name, cut.name, paths))
            start = cut
        elif blocks and blocks[-1].end == before.name and _is_elementwise(graph_module, cut):
            blocks[-1] = Block(blocks[-1].start, cut.name, blocks[-1].layers)
            start = cut
    last = blocks[-1]
    return [*blocks[:-1], Block(last.start, cuts[-1].name, last.layers)]


def layer_blocks(graph_module: fx.GraphModule, block: Block) -> list[Block]:
    """One block per layer of `block`, each with the activation function that alone follows it.

    Args:
        graph_module: the graph `block` was found in.
        block: any of its blocks. A layer called several times gives the block of its first call.
    """
    inside = _needed(graph_module, block.start, block.end)
    found: dict[str, Block] = {}
    for node in inside:
        path = str(node.target)
        if not _is_layer(graph_module, node) or path in found:
            continue
        end = node
        while len(end.users) == 1 and end.name != block.end:
            (after,) = end.users
            if not _is_elementwise(graph_module, after):
                break
            end = after
        found[path] = Block(node.all_input_nodes[0].name, end.name, (path,))
    return list(found.values())


def subgraph(graph_module: fx.GraphModule, start: str, end: str) -> fx.GraphModule:
    """The function from the value of node `start` to that of node `end`, sharing all submodules.

    Args:
        graph_module: a graph, or a student made from it: node names survive quantizer insertion,
            and a quantizer of the value of `start` belongs to the subgraph.
        start: node name.
        end: node name; with ``start == end`` the function is the identity.

    Raises:
        ModelError: `end` depends on something beside `start`.
    """
    nodes = _needed(graph_module, start, end)
    graph = fx.Graph()
    placeholder = graph.placeholder("x")
    copies: dict[fx.Node, fx.Node] = {_node(graph_module, start): placeholder}
    for node in nodes:
        if node.op == "placeholder":
            raise ModelError(f"{end} cannot be computed from {start} alone: it needs {node.name}")
        copies[node] = graph.node_copy(node, lambda used: copies[used])
    graph.output(copies[_node(graph_module, end)])
    return fx.GraphModule(graph_module, graph).eval()


def reaches(graph_module: fx.GraphModule, start: str, end: str) -> bool:
    """Whether the value of node `end` is computed from that of node `start`, or is that."""
    return start == end or _node(graph_module, start) in {
        used for node in _needed(graph_module, start, end) for used in node.all_input_nodes
    }


def output_name(graph_module: fx.GraphModule) -> str:
    """Name of the node whose value the graph returns."""
    (output,) = graph_module.graph.find_nodes(op="output")
    return output.all_input_nodes[0].name


def _cuts(graph_module: fx.GraphModule) -> list[fx.Node]:
    """The nodes every path passes through, in order: the input first, the output value last."""
    waiting: dict[fx.Node, int] = {}
    cuts: list[fx.Node] = []
    for node in graph_module.graph.nodes:
        if node.op in ("get_attr", "output"):
            continue
        for used in node.all_input_nodes:
            if used in waiting:
                waiting[used] -= 1
                if not waiting[used]:
                    del waiting[used]
        if node.users:
            waiting[node] = len(node.users)
        if waiting.keys() == {node} and counts_images(node):
            cuts.append(node)
    return cuts


def _needed(graph_module: fx.GraphModule, start: str, end: str) -> list[fx.Node]:
    """The nodes that lead from `start`, which is left out, to `end`, in execution order."""
    wanted: set[fx.Node] = set()
    stack = [_node(graph_module, end)]
    while stack:
        node = stack.pop()
        if node.name != start and node not in wanted:
            wanted.add(node)
            stack += node.all_input_nodes
    return [node for node in graph_module.graph.nodes if node in wanted]


def _node(graph_module: fx.GraphModule, name: str) -> fx.Node:
    for node in graph_module.graph.nodes:
        if node.name == name:
            return node
    raise ModelError(f"the graph has no node {name}")


def _is_layer(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(
        graph_module.get_submodule(str(node.target)), QUANTIZABLE
    )


def _is_elementwise(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(
        graph_module.get_submodule(str(node.target)), (*ELEMENTWISE, BatchNorm)
    )
