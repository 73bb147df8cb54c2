"""What a sum in a graph is made of: linear functions of tensors, with factors by channel."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch._ops import OpOverload  # pyright: ignore[reportPrivateUsage]

from datafree.graph._exported import attribute
from datafree.graph.affine import affine, count_calls, norm_called_once
from datafree.graph.kernels import CONVOLUTIONS, Convolution, Kernel, of_convolution, pooling

Told = tuple[tuple[str, Tensor], ...]
"""Layers by path, and what their outputs are multiplied with: scalars, or (C,)."""

_SUMS = ("add", "sub")


@dataclass(frozen=True, eq=False)
class Leaf:
    """A linear function of one tensor, times a factor.

    Attributes:
        node: that returns it: the call of a convolution or pooling, or the tensor itself.
        path: of the convolution; empty for others.
        kernel: of a convolution; of a pooling with a single channel; None for the tensor itself.
        factor: scalar or (C,), float64.
        plain: whether it is the tensor itself, times a number at most before it is added.
    """

    node: fx.Node
    path: str
    kernel: Kernel | None
    factor: Tensor
    plain: bool = False

    @property
    def cost(self) -> int:
        """Multiplications for each position of the output; those of plain ones need not be."""
        if self.kernel is not None and self.path:
            return self.kernel.weight.numel()
        return 0 if self.plain else self.factor.numel()


@dataclass(frozen=True, eq=False)
class Summand:
    """A part of a sum: ``sum of leaves + offset``.

    Attributes:
        value: the node that returns it before its sign, or a number.
        negative: whether it is subtracted; all below has that sign.
        source: the tensor that all leaves are functions of; None of a constant, which has none.
        leaves: at least one, but of a constant.
        offset: scalar or (C,), float64.
        told: what it is a sum of, up to `shift`: layers and batch norms, whose outputs may be known
            from statistics; None where something else is in it.
        shift: scalar or (C,), float64.
    """

    value: fx.Node | float
    source: fx.Node | None
    leaves: tuple[Leaf, ...] = ()
    offset: Tensor = field(default_factory=lambda: _number(0))
    told: Told | None = ()
    shift: Tensor = field(default_factory=lambda: _number(0))
    negative: bool = False

    def scaled(self, factor: Tensor) -> Summand:
        """``factor`` times it."""
        told = None if self.told is None else tuple((p, f * factor) for p, f in self.told)
        # A sum that is scaled by channel is as plain as before: none of its tensors is by itself.
        plainly = factor.ndim == 0 or len(self.leaves) > 1
        leaves = tuple(
            replace(leaf, factor=leaf.factor * factor, plain=leaf.plain and plainly)
            for leaf in self.leaves
        )
        return replace(
            self, leaves=leaves, offset=self.offset * factor, told=told, shift=self.shift * factor
        )

    def subtracted(self) -> Summand:
        """Its negative, as a part of a sum."""
        return replace(self.scaled(_number(-1)), negative=not self.negative)

    @property
    def channels(self) -> set[int]:
        """Lengths of all that is given by channel: one at most where the parts fit each other."""
        by_channel = (self.offset, *(leaf.factor for leaf in self.leaves))
        return {len(values) for values in by_channel if values.ndim}


@dataclass(frozen=True)
class Reader:
    """Reads sums off a graph.

    Attributes:
        graph_module: float, batch norms folded.
        dimensions: of its images.
        times_called: of its modules.
    """

    graph_module: fx.GraphModule
    dimensions: int
    times_called: Counter[str]

    @classmethod
    def of(cls, graph_module: fx.GraphModule, dimensions: int) -> Reader:
        """A reader of `graph_module`, for layers on images of so many dimensions."""
        return cls(graph_module, dimensions, count_calls(graph_module))

    def parts(self, root: fx.Node) -> list[Summand]:
        """What the value of `root` is the sum of; empty if it is no sum, nor an affine step on one.

        A part that others read too, or that is no function this knows, is a tensor of its own.
        """
        if _name(root) in _SUMS:
            return self._added(root)
        return [] if (affine := self._affine(root)) is None else [affine]

    def _added(self, node: fx.Node) -> list[Summand]:
        """The parts of a sum or difference, inner ones included."""
        if len(node.args) != 2 or node.kwargs:
            return [_itself(node)]
        found: list[Summand] = []
        for argument, subtracted in zip(node.args, (False, _name(node) == "sub"), strict=True):
            parts = self._operand(argument)
            found += [part.subtracted() for part in parts] if subtracted else parts
        return found

    def _operand(self, argument: Any) -> list[Summand]:
        constant = self._constant(argument)
        if constant is not None:
            return [Summand(argument, None, offset=constant, shift=constant)]
        node = cast("fx.Node", argument)
        inner = _name(node) in _SUMS and _is_private(node)
        return self._added(node) if inner else [self._linear(node)]

    def _linear(self, node: fx.Node) -> Summand:
        """`node` as a function of one tensor: itself, if nothing else."""
        if not _is_private(node):
            return _itself(node)
        found = self._layer(node) or self._pooling(node) or self._affine(node)
        if found is None and _name(node) in _SUMS:
            found = united(node, self._added(node))
        return found or _itself(node)

    def _layer(self, node: fx.Node) -> Summand | None:
        path = str(node.target)
        if node.op != "call_module" or self.times_called[path] > 1:
            return None
        layer = self.graph_module.get_submodule(path)
        # Subclasses, such as quantized layers, compute something else.
        if type(layer) not in CONVOLUTIONS or layer.weight.ndim != self.dimensions + 2:
            return None
        kernel = of_convolution(cast("Convolution", layer))
        if kernel is None:
            return None
        leaf = Leaf(node, path, kernel, _number(1))
        return Summand(node, node.all_input_nodes[0], (leaf,), told=((path, _number(1)),))

    def _pooling(self, node: fx.Node) -> Summand | None:
        if _name(node) != f"avg_pool{self.dimensions}d" or node.kwargs:
            return None
        source, *given = node.args
        defaults = ((), 0, False, True, None)
        options: Any = (*given, *defaults[len(given) - 1 :])
        taps, stride, padding, ceil_mode, counts_padding, divisor = options
        taps, padding = (_spread(value, self.dimensions) for value in (taps, padding))
        stride = _spread(stride, self.dimensions) if stride else taps
        if ceil_mode or (any(padding) and not counts_padding and divisor is None):
            return None  # windows at the border are divided by less
        kernel = pooling(taps, stride, padding, divisor or math.prod(taps))
        leaf = Leaf(node, "", kernel, _number(1))
        return Summand(node, cast("fx.Node", source), (leaf,), told=None)

    def _affine(self, node: fx.Node) -> Summand | None:
        """A batch norm, or a product with a constant, of a function of one tensor."""
        norm = norm_called_once(self.graph_module, node, self.times_called)
        if norm is not None:
            inner = self._linear(node.all_input_nodes[0])
            factor, offset = affine(norm)
            if not _fits(inner, factor):
                return None
            scaled = inner.scaled(factor)
            told = ((str(node.target), _number(1)),)
            return replace(
                scaled, value=node, offset=scaled.offset + offset, told=told, shift=_number(0)
            )
        found = self._factor(node)
        if found is None:
            return None
        inner = self._linear(found[0])
        return replace(inner.scaled(found[1]), value=node) if _fits(inner, found[1]) else None

    def _factor(self, node: fx.Node) -> tuple[fx.Node, Tensor] | None:
        """The tensor and the constant that `node` is the product of."""
        name, arguments = _name(node), node.args
        if node.kwargs:
            return None
        if name == "neg" and isinstance(arguments[0], fx.Node):
            return arguments[0], _number(-1)
        if name not in ("mul", "div") or len(arguments) != 2:
            return None
        one, two = arguments
        if name == "mul" and self._constant(two) is None:
            one, two = two, one
        constant = self._constant(two)
        if constant is None or not isinstance(one, fx.Node) or self._constant(one) is not None:
            return None
        factor = 1 / constant if name == "div" else constant
        return (one, factor) if bool(factor.isfinite().all()) else None

    def _constant(self, argument: Any) -> Tensor | None:
        """A number, or a tensor of the graph with one number for each channel; else None."""
        if isinstance(argument, int | float):
            return _number(argument)
        if not isinstance(argument, fx.Node) or argument.op != "get_attr":
            return None
        value = attribute(self.graph_module, str(argument.target))
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return None
        if value.numel() == 1 and value.ndim <= self.dimensions + 2:
            return value.detach().double().view(())
        shape = (1,) * (self.dimensions + 2 - value.ndim) + tuple(value.shape)
        by_channel = len(shape) == self.dimensions + 2 and value.numel() == shape[1]
        return value.detach().double().flatten() if by_channel else None


def dimensions_of(graph_module: fx.GraphModule) -> set[int]:
    """Of how many dimensions the images of its convolutions are."""
    return {len(m.kernel_size) for m in graph_module.modules() if isinstance(m, CONVOLUTIONS)}


def united(node: fx.Node, parts: list[Summand]) -> Summand | None:
    """The sum of `parts`, which `node` returns, as one; None where not all read the same tensor."""
    sources = {part.source for part in parts if part.source is not None}
    if len(sources) != 1:
        return None
    told: Told | None = ()
    for part in parts:
        told = None if told is None or part.told is None else (*told, *part.told)
    lengths = set[int]().union(*(part.channels for part in parts))
    if len(lengths) > 1:
        return None
    zero = _number(0)
    return Summand(
        node,
        sources.pop(),
        tuple(leaf for part in parts for leaf in part.leaves),
        sum((part.offset for part in parts), zero),
        told,
        sum((part.shift for part in parts), zero),
    )


def _itself(node: fx.Node) -> Summand:
    return Summand(node, node, (Leaf(node, "", None, _number(1), plain=True),), told=None)


def _fits(part: Summand, factor: Tensor) -> bool:
    return not factor.ndim or part.channels <= {len(factor)}


def _is_private(node: fx.Node) -> bool:
    return len(node.users) == 1


def _spread(value: Sequence[int] | int, dimensions: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dimensions if len(values) == 1 else values


def _number(value: float) -> Tensor:
    return torch.tensor(float(value), dtype=torch.float64)


def _name(node: fx.Node) -> str:
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return ""
    return node.target.overloadpacket.__name__
