"""Activations that a file spells out, put back together.

Opsets before 20 have no GELU, before 14 no hard swish, and none has SiLU. As layers of their own
they get one quantizer behind them, not one on every step.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

_MUL = (torch.mul, operator.mul, torch.Tensor.mul)
_DIV = (torch.div, torch.true_divide, torch.Tensor.div)
_ADD = (torch.add, operator.add, torch.Tensor.add)
_CLOSE = 1e-3


def join_activations(module: fx.GraphModule) -> fx.GraphModule:
    """`module` with GELU, SiLU, hard sigmoid and hard swish as calls of `torch.nn.functional`.

    And with the bias of a linear layer that was added behind it within it. In place.
    """
    for node in list(module.graph.nodes):
        for rule in (_hard_sigmoid, _gated, _gelu, _biased):
            found = rule(node, module)
            if found is not None:
                node.replace_all_uses_with(found)
                break
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _gated(node: fx.Node, module: fx.GraphModule) -> fx.Node | None:
    """SiLU, x · sigmoid(x), and hard swish, x · hardsigmoid(x)."""
    del module
    gates: dict[Any, Callable[..., Tensor]] = {
        F.sigmoid: F.silu,
        torch.sigmoid: F.silu,
        F.hardsigmoid: F.hardswish,
    }
    if node.target not in _MUL:
        return None
    for x, gate in (node.args, node.args[::-1]):
        if isinstance(gate, fx.Node) and gate.target in gates and gate.args[0] is x:
            return _call(node, gates[gate.target], x)
    return None


def _hard_sigmoid(node: fx.Node, module: fx.GraphModule) -> fx.Node | None:
    """relu6(x + 3) / 6."""
    del module
    for inner, factor in _scaled(node):
        if abs(factor - 1 / 6) < _CLOSE / 6 and inner.target is F.relu6:
            shifted = inner.args[0]
            if isinstance(shifted, fx.Node) and shifted.target in _ADD:
                for x, three in (shifted.args, shifted.args[::-1]):
                    if three == 3 and isinstance(x, fx.Node):
                        return _call(node, F.hardsigmoid, x)
    return None


def _gelu(node: fx.Node, module: fx.GraphModule) -> fx.Node | None:
    """GELU, x / 2 · (1 + erf(x / √2)), multiplied in any order."""
    del module
    if node.target not in _MUL:
        return None
    factors, number = _factors(node)
    if len(factors) != 2 or abs(number - 0.5) > _CLOSE:
        return None
    for x, gate in (factors, factors[::-1]):
        if gate.target not in _ADD or 1 not in gate.args:
            continue
        erf = gate.args[0] if gate.args[1] == 1 else gate.args[1]
        if isinstance(erf, fx.Node) and erf.target is torch.erf:
            for inner, factor in _scaled(erf.args[0]):
                if inner is x and abs(factor - math.sqrt(0.5)) < _CLOSE:
                    return _call(node, F.gelu, x)
    return None


def _biased(node: fx.Node, module: fx.GraphModule) -> fx.Node | None:
    """A linear layer without bias whose only reader adds one number for each output."""
    if node.target not in _ADD:
        return None
    for layer, bias in (node.args, node.args[::-1]):
        if not isinstance(layer, fx.Node) or not isinstance(bias, fx.Node) or bias.op != "get_attr":
            continue
        bare = layer.args[2:] in ((), (None,))
        if layer.target is F.linear and bare and len(layer.users) == 1:
            weight: Any = layer.args[1]
            added = operator.attrgetter(str(bias.target))(module)
            if added.shape == operator.attrgetter(str(weight.target))(module).shape[:1]:
                return _call(node, F.linear, layer.args[0], weight, bias)
    return None


def _call(before: fx.Node, function: Callable[..., Any], *args: Any) -> fx.Node:
    with before.graph.inserting_before(before):
        return before.graph.call_function(function, args)


def _scaled(node: Any) -> Iterator[tuple[fx.Node, float]]:
    """What `node` multiplies by a number, and the number."""
    if not isinstance(node, fx.Node) or len(node.args) != 2:
        return
    first, second = node.args
    if isinstance(first, fx.Node) and isinstance(second, int | float) and second:
        if node.target in _MUL:
            yield first, float(second)
        elif node.target in _DIV:
            yield first, 1 / float(second)


def _factors(node: Any) -> tuple[list[fx.Node], float]:
    """What `node` multiplies, through products that nothing else reads, and the number with it."""
    found: list[fx.Node] = []
    number = 1.0
    for argument in node.args:
        if isinstance(argument, int | float):
            number *= argument
        elif argument.target in (*_MUL, *_DIV) and len(argument.users) == 1:
            inner, factor = next(_scaled(argument), (None, 1.0))
            if inner is not None:
                more, times = ([inner], factor)
            elif argument.target in _MUL:
                more, times = _factors(argument)
            else:
                more, times = [argument], 1.0
            found += more
            number *= times
        else:
            found.append(argument)
    return found, number
