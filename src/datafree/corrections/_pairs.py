"""Pairs of layers between which a positive factor per channel can move (algorithms B.4.2)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn
from torch._ops import OpOverload  # pyright: ignore[reportPrivateUsage]

from datafree.graph.sizes import readers
from datafree.quant.modules import QUANTIZABLE, QuantizableLayer

_HOMOGENEOUS = (nn.Identity, nn.ReLU, nn.LeakyReLU, nn.PReLU)
_POOLS = frozenset(("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"))


@dataclass(frozen=True)
class Pair:
    """Two layers of which the second alone reads the first.

    Attributes:
        first: path of the layer whose output channels are scaled.
        second: path of the layer that reads them.
        clipped: paths of the ReLU6 activations in between, each called nowhere else.
        activations: paths of all activation functions in between.
    """

    first: str
    second: str
    clipped: tuple[str, ...] = ()
    activations: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Values:
    """Where the channels of the first layer are in the tensor at hand.

    `rank` counts its dimensions; channels are dimension 1, runs of it once flattened. Behind a
    linear layer, where channels are last among any number of dimensions, it is 0.
    """

    node: fx.Node
    rank: int


def find_pairs(graph_module: fx.GraphModule, *, through_relu6: bool = False) -> list[Pair]:
    """The pairs of a folded graph in execution order; chains share layers.

    Both layers are called once, and each tensor from one to the other has one reader. In between
    are only steps `f` with ``f(s x) = s f(x)`` for every ``s > 0`` per channel: ReLU, leaky and
    parametric ReLU, 2-d pooling, means over positions, flattening into a linear layer.

    Args:
        graph_module: canonical graph, batch norms folded.
        through_relu6: also pairs with ReLU6 between them, which is not such a step.
    """
    calls = Counter(str(n.target) for n in graph_module.graph.nodes if n.op == "call_module")
    pairs: list[Pair] = []
    for node in graph_module.graph.nodes:
        first = _layer(graph_module, node, calls)
        if first is None:
            continue
        rank = 0 if isinstance(first, nn.Linear) else first.weight.ndim
        values, between = _Values(node, rank), list[str]()
        while len(following := readers(values.node)) == 1:
            (reader,) = following
            second = _layer(graph_module, reader, calls)
            if second is not None:
                if _fits(values, first, second):
                    pairs.append(_pair(graph_module, node, reader, between))
                break
            clips = through_relu6 and _is_relu6(graph_module, reader, calls)
            passed = replace(values, node=reader) if clips else _after(graph_module, values, reader)
            if passed is None:
                break
            if reader.op == "call_module":
                between.append(str(reader.target))
            values = passed
    return pairs


def quantizable(graph_module: fx.GraphModule, path: str) -> QuantizableLayer:
    """The layer at `path`, one of a pair."""
    layer = graph_module.get_submodule(path)
    assert isinstance(layer, QuantizableLayer)  # noqa: S101 - pairs consist of these only
    return layer


def _pair(
    graph_module: fx.GraphModule, first: fx.Node, second: fx.Node, between: list[str]
) -> Pair:
    clipped = [p for p in between if isinstance(graph_module.get_submodule(p), nn.Hardtanh)]
    return Pair(str(first.target), str(second.target), tuple(clipped), tuple(between))


def _layer(
    graph_module: fx.GraphModule, node: fx.Node, calls: Counter[str]
) -> QuantizableLayer | None:
    """The convolution or linear layer `node` calls, if nothing else calls it."""
    if node.op != "call_module" or calls[str(node.target)] > 1:
        return None
    module = graph_module.get_submodule(str(node.target))
    return module if isinstance(module, QUANTIZABLE) else None


def _fits(values: _Values, first: QuantizableLayer, second: QuantizableLayer) -> bool:
    """Whether the input channels of `second` are those `first` wrote, or whole runs of them."""
    channels = first.weight.shape[0]
    if not isinstance(second, nn.Linear):
        return values.rank == second.weight.ndim and second.in_channels == channels
    if values.rank == 0:
        return second.in_features == channels
    return values.rank == 2 and second.in_features % channels == 0


def _is_relu6(graph_module: fx.GraphModule, node: fx.Node, calls: Counter[str]) -> bool:
    if node.op != "call_module" or calls[str(node.target)] > 1:
        return False
    module = graph_module.get_submodule(str(node.target))
    return isinstance(module, nn.Hardtanh) and (module.min_val, module.max_val) == (0, 6)


def _after(graph_module: fx.GraphModule, values: _Values, reader: fx.Node) -> _Values | None:
    """The values `reader` makes of `values`, or None where a factor per channel does not pass."""
    if reader.op == "call_module":
        passes = isinstance(graph_module.get_submodule(str(reader.target)), _HOMOGENEOUS)
        return replace(values, node=reader) if passes else None
    # A number written into the arguments is no tensor; a second tensor means another branch.
    if reader.op != "call_function" or reader.args[:1] != (values.node,) or values.rank == 0:
        return None
    rank = _rank_after(_name(reader), reader, values.rank)
    return None if rank is None else _Values(reader, rank)


def _rank_after(name: str, node: fx.Node, rank: int) -> int | None:
    if name in _POOLS:
        # On three dimensions these would pool over the channels.
        return rank if rank == 4 else None
    if name == "mean":
        return _rank_after_mean(node, rank)
    if name == "flatten":
        to_the_end = len(node.args) < 3 or node.args[2] in (-1, rank - 1)
        return 2 if node.args[1:2] == (1,) and to_the_end and not node.kwargs else None
    if name in ("view", "reshape"):
        return 2 if _is_flattening(node) else None
    return None


def _rank_after_mean(node: fx.Node, rank: int) -> int | None:
    dims: Any = node.args[1] if len(node.args) > 1 else None
    if node.kwargs or not isinstance(dims, list | tuple) or not dims:
        return None
    positions = {int(dim) % rank for dim in dims}
    if min(positions) < 2:
        return None
    keeps = len(node.args) > 2 and bool(node.args[2])
    return rank if keeps else rank - len(positions)


def _is_flattening(node: fx.Node) -> bool:
    """Whether `node` reshapes to (size of the batch, everything else)."""
    before, shape = node.args[0], node.args[1]
    if not isinstance(shape, list | tuple) or len(shape) != 2:
        return False
    batch, rest = shape
    if not isinstance(batch, fx.Node) or not isinstance(rest, int) or _name(batch) != "sym_size":
        return False
    source = batch.args[0]
    images = source is before or (isinstance(source, fx.Node) and source.op == "placeholder")
    return images and batch.args[1:] == (0,)


def _name(node: fx.Node) -> str:
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return ""
    return node.target.overloadpacket.__name__
