"""Which tensors a runtime wants quantized, so that every operator around them is an integer kernel.

A runtime takes an integer kernel where all inputs of an operator are quantized and, for some
operators, its output too. One quantizer stands on a tensor, and all its readers read it; a tensor
that is only moved about (reshaped, padded, pooled by maximum) is quantized where it was computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch._ops import OpOverload  # pyright: ignore[reportPrivateUsage]

from datafree.graph.chosen import is_kept
from datafree.graph.outputs import is_end
from datafree.graph.sizes import is_size, rank_of, values_read
from datafree.quant.modules import QUANTIZABLE, ChannelCopies
from datafree.targets import Target
from datafree.targets.base import Operator

_MOVES = frozenset(
    ("max_pool1d", "max_pool2d", "max_pool3d", "flatten", "view", "reshape", "permute", "transpose",
     "unsqueeze", "squeeze", "slice", "select", "contiguous", "clone", "split", "split_with_sizes",
     "chunk", "unbind", "pixel_shuffle", "pixel_unshuffle", "upsample_nearest2d",
     "expand", "numpy_T", "t", "channel_shuffle", "to", "movedim", "narrow", "unflatten")
)  # fmt: skip
_PADS = {"pad": 3, "constant_pad_nd": 2}
_BY_NAME: dict[str, Operator] = {
    "add": "add", "add_": "add", "mul": "mul", "mul_": "mul", "cat": "cat", "concat": "cat",
    "concatenate": "cat", "avg_pool2d": "avg_pool", "adaptive_avg_pool2d": "avg_pool",
    "mean": "avg_pool",
}  # fmt: skip
_BY_MODULE: tuple[tuple[type[nn.Module] | tuple[type[nn.Module], ...], Operator], ...] = (
    (nn.Linear, "linear"),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), "conv"),
    (nn.Sigmoid, "sigmoid"),
    (nn.LeakyReLU, "leaky_relu"),
)
_JOINS = frozenset(("add", "mul"))


@dataclass(frozen=True)
class Edge:
    """A tensor that carries a quantizer.

    Attributes:
        node: that computes it.
        readers: nodes that read it quantized.
        wide: no convolution or linear layer reads it, so that it has 8 bits: runtimes compute the
            rest in 8 bits whatever the layers have.
    """

    node: fx.Node
    readers: tuple[fx.Node, ...]
    wide: bool


def integer_edges(graph_module: fx.GraphModule, rules: Target) -> list[Edge]:
    """The tensors that `rules` wants quantized, in execution order.

    Args:
        graph_module: float graph, batch norms folded where exact.
        rules: of the runtime.
    """
    return _Edges(graph_module, rules).found()


def operator_of(graph_module: fx.GraphModule, node: fx.Node) -> Operator | None:
    """Which operator of a runtime `node` is; None for what has no integer kernel anywhere."""
    if is_kept(graph_module, node):
        return None
    module = module_of(graph_module, node)
    if module is not None:
        return next((name for kind, name in _BY_MODULE if isinstance(module, kind)), None)
    name = operation(node)
    found = _BY_NAME.get(name)
    if found in _JOINS and len(values_read(node)) < 2 and node.args[0] is not node.args[-1]:
        return None  # with a number, or with itself
    if found is not None and any(
        origin(graph_module, source).op == "get_attr" for source in values_read(node)
    ):
        return None  # with a constant
    if name == "mean" and not _over_maps(node):
        return None
    return None if node.kwargs.get("alpha", 1) != 1 else found


def module_of(graph_module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that `node` calls."""
    return graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None


def operation(node: fx.Node) -> str:
    """Name of the function `node` calls: ``add``, ``max_pool2d``; empty for modules."""
    if node.op != "call_function":
        return ""
    if isinstance(node.target, OpOverload):
        return node.target.overloadpacket.__name__
    return str(getattr(node.target, "__name__", ""))


def moves(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether `node` only moves, repeats or picks values, or pads them with zeros."""
    if isinstance(module_of(graph_module, node), nn.Identity | ChannelCopies):
        return True
    name = operation(node)
    if name == "getitem":  # one of the tensors of a split, but not the result of a recurrent layer
        return moves(graph_module, node.all_input_nodes[0])
    return not _padding(node, _PADS[name]) if name in _PADS else name in _MOVES


def _padding(node: fx.Node, place: int) -> Any:
    """The number that is padded with, the argument at `place`."""
    return node.args[place] if len(node.args) > place else node.kwargs.get("value")


def origin(graph_module: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Where the values of `node` were computed, before they were moved about."""
    while moves(graph_module, node):
        node = values_read(node)[0]
    return node


def is_result(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the network returns the values of `node`, perhaps moved about."""
    readers = [user for user in node.users if not is_size(user)]
    return any(
        is_end(user) or (moves(graph_module, user) and is_result(graph_module, user))
        for user in readers
    )


def fuses(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether `node` is an activation function that a quantizer behind it makes redundant."""
    module = module_of(graph_module, node)
    return isinstance(module, nn.ReLU | nn.ReLU6) or (
        isinstance(module, nn.Hardtanh) and module.min_val == 0
    )


def _over_maps(node: fx.Node) -> bool:
    """Whether a mean goes over height and width of images."""
    dims: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if not isinstance(dims, list | tuple):
        return False
    kept = node.kwargs.get("keepdim", node.args[2] if len(node.args) > 2 else False)
    rank = rank_of(node, 4 if kept else 4 - len(dims)) + (0 if kept else len(dims))
    return rank == 4 and sorted(int(d) % 4 for d in dims) == [2, 3]


class _Edges:
    """One search; nodes are looked up in the order in which they are computed."""

    def __init__(self, graph_module: fx.GraphModule, rules: Target) -> None:
        self.graph_module, self.rules = graph_module, rules
        self.nodes = list(graph_module.graph.nodes)
        self.kinds = {node: operator_of(graph_module, node) for node in self.nodes}
        self.integer = {node for node in self.nodes if self._layer(node)}
        self._grow()

    def found(self) -> list[Edge]:
        wanted: dict[fx.Node, None] = {}
        for node in self.nodes:
            if node not in self.integer:
                continue
            for source in values_read(node):
                if not self._absorbed(source, node):
                    wanted[self.origin(source)] = None
            if self.kinds[node] in self.rules.behind:
                end = self.end(node)
                if not self._absorbed(end, None):
                    wanted[end] = None
        return [self._edge(node) for node in self.nodes if node in wanted]

    def origin(self, node: fx.Node) -> fx.Node:
        return origin(self.graph_module, node)

    def end(self, node: fx.Node) -> fx.Node:
        """The activation function that alone reads `node` and that a quantizer swallows, or it."""
        readers = self._readers(node)
        if len(readers) == 1 and fuses(self.graph_module, readers[0]):
            return readers[0]
        return node

    def _layer(self, node: fx.Node) -> bool:
        layer = isinstance(module_of(self.graph_module, node), QUANTIZABLE)
        return layer and not is_kept(self.graph_module, node)

    def _readers(self, node: fx.Node) -> list[fx.Node]:
        return [user for user in node.users if not is_size(user)]

    def _behind_moves(self, node: fx.Node) -> list[fx.Node]:
        """Who computes with the values of `node`, however they were moved about before."""
        found: list[fx.Node] = []
        for user in self._readers(node):
            found += self._behind_moves(user) if moves(self.graph_module, user) else [user]
        return found

    def _producer(self, node: fx.Node) -> fx.Node:
        """The operator whose result `node` is, before moves and activation functions."""
        node = self.origin(node)
        while fuses(self.graph_module, node):
            node = self.origin(values_read(node)[0])
        return node

    def _grow(self) -> None:
        """Take in what stands between layers, until nothing more is found.

        An operator without weights is worth an integer kernel if it reads what a convolution
        computed, which has to be quantized anyway; or if what it computes is read by an integer
        kernel and something that it reads comes from one.
        """
        candidates = [
            node for node in self.nodes
            if self.kinds[node] in self.rules.operators and node not in self.integer
            and not is_result(self.graph_module, node)  # results stay float
        ]  # fmt: skip
        grown = True
        while grown:
            grown = False
            for node in candidates:
                if node not in self.integer and self._worth(node):
                    self.integer.add(node)
                    grown = True

    def _worth(self, node: fx.Node) -> bool:
        producers = [self._producer(source) for source in values_read(node)]
        if any(self.kinds[producer] == "conv" for producer in producers):
            return True
        read = any(reader in self.integer for reader in self._behind_moves(self.end(node)))
        return read and any(producer in self.integer for producer in producers)

    def _absorbed(self, source: fx.Node, reader: fx.Node | None) -> bool:
        """Whether `source` is a convolution that its only reader, an addition, is computed in.

        Of two such summands the later one is absorbed: the other is then already there.
        """
        readers = self._readers(source)
        if not self.rules.absorbs_add or len(readers) != 1 or self.kinds.get(source) != "conv":
            return False
        (only,) = readers
        if self.kinds[only] != "add" or only not in self.integer or reader not in (None, only):
            return False
        others = [n for n in values_read(only) if n is not source]
        position = self.nodes.index
        return not any(
            self.kinds[o] == "conv"
            and len(self._readers(o)) == 1
            and position(o) > position(source)
            for o in others
        )

    def _edge(self, node: fx.Node) -> Edge:
        behind = self._behind_moves(node)
        wide = not any(self._layer(reader) for reader in behind)
        # What is computed in float anyway may go on being read in float by float operators.
        computed = self._producer(node) in self.integer
        readers = tuple(
            user for user in self._readers(node)
            if (computed and not self._float_result(node, user)) or self._leads_to_integer(user)
        )  # fmt: skip
        return Edge(node, readers, wide)

    def _float_result(self, node: fx.Node, user: fx.Node) -> bool:
        """Whether `user` returns a result whose kernel may have float output."""
        if self.kinds[self._producer(node)] in self.rules.behind:
            return False
        behind = self._behind_moves(user) if moves(self.graph_module, user) else [user]
        return all(is_end(reader) for reader in behind)

    def _leads_to_integer(self, user: fx.Node) -> bool:
        if moves(self.graph_module, user):
            return any(reader in self.integer for reader in self._behind_moves(user))
        return user in self.integer
