"""What in a network is still the image: its input, normalised, moved, padded, pooled or resized.

Such tensors keep eight bits and a range from black to white, however few bits other activations
have: an image has 256 values a channel before and after ``(x - mean) / std``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from datafree.config import InputSpec
from datafree.config.inputs import Input
from datafree.graph._exported import attribute
from datafree.graph.edges import module_of, moves, operation
from datafree.graph.inputs import input_at, inputs_of
from datafree.graph.sizes import values_read
from datafree.graph.taps import BatchNorm

Bounds = tuple[Tensor, Tensor]
"""Lowest and highest value, (C,) by channel, or (1,) of all."""

_SAME_CHANNELS = frozenset(
    ("contiguous", "clone", "to", "_to_copy", "max_pool2d", "upsample_nearest2d",
     "upsample_bilinear2d", "_upsample_nearest_exact2d", "_upsample_bilinear2d_aa",
     "adaptive_avg_pool2d")
)  # fmt: skip
_PADS = {"pad": 3, "constant_pad_nd": 2}
_AFFINE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div,
    "rsub": lambda left, right: right - left,
}  # fmt: skip


def image_bounds(graph_module: fx.GraphModule, spec: InputSpec | None) -> dict[fx.Node, Bounds]:
    """The nodes of `graph_module` that are the image, with the values of black and white there.

    Chains of additions and multiplications with constants, batch norms, moves, padding, averages
    and maxima of neighbours, (bi)linear resizing, and concatenations of such count. Inputs that are
    no images count too, with bounds that are infinite.

    Args:
        graph_module: canonical; not changed.
        spec: its input; None takes images from 0 to 1.
    """
    found: dict[fx.Node, Bounds] = {}
    several = bool(inputs_of(graph_module))
    for node in graph_module.graph.nodes:
        own = input_at(graph_module, node)
        if node.op == "placeholder":
            bounds = None if several else _input(spec)
        elif own is not None:
            bounds = _given(own)
        else:
            bounds = _bounds(graph_module, node, found)
        if bounds is not None:
            found[node] = bounds
    return found


def _input(spec: InputSpec | None) -> Bounds:
    if spec is None:
        return torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (spec.mean, spec.std))
    return -mean / std, (1 - mean) / std


def _given(own: Input) -> Bounds:
    """Black and white of an image; values have no ends."""
    if own.kind == "values":
        endless = torch.full((1,), math.inf, dtype=torch.float64)
        return -endless, endless
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (own.mean, own.std))
    return -mean / std, (1 - mean) / std


def _bounds(
    graph_module: fx.GraphModule, node: fx.Node, found: dict[fx.Node, Bounds]
) -> Bounds | None:
    """What `node` makes of an image; None if it reads none, or makes something else of it."""
    sources = [] if node.op in ("output", "get_attr") else values_read(node)
    module, name = module_of(graph_module, node), operation(node)
    if name in _AFFINE:
        return _affine(graph_module, node, found)
    if not sources or any(source not in found for source in sources):
        return None
    low, high = found[sources[0]]
    if name == "cat":
        parts = [found[source] for source in sources]
        return _hull(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]))
    if isinstance(module, BatchNorm):
        return _normalised(module, low, high)
    if name in _PADS or name == "avg_pool2d":
        return _with_padding(node, name, low, high)
    if isinstance(module, nn.Identity) or name in _SAME_CHANNELS:
        return low, high
    return _hull(low, high) if moves(graph_module, node) else None


def affine_ends(
    graph_module: fx.GraphModule, node: fx.Node, source: fx.Node, ends: Bounds
) -> Bounds | None:
    """What the values `ends` of `source` become behind `node`, channel by channel, in their order.

    None unless `node` adds to `source`, or multiplies it by, a number for each channel.
    """
    name = operation(node)
    constant = _other(graph_module, node, source) if name in _AFFINE else None
    if constant is None:
        return None
    by_channel, *others = _per_channel(constant, len(ends[0]))
    if others:
        return None
    first, second = (_applied(node, source, end, by_channel) for end in ends)
    return first.expand(len(ends[0])), second.expand(len(ends[0]))


def _affine(
    graph_module: fx.GraphModule, node: fx.Node, found: dict[fx.Node, Bounds]
) -> Bounds | None:
    """An image and a constant, in either order; no division by the image."""
    source = next((n for n in node.args[:2] if isinstance(n, fx.Node) and n in found), None)
    constant = None if source is None else _other(graph_module, node, source)
    if source is None or constant is None:
        return None
    ends = found[source]
    others = _per_channel(constant, len(ends[0]))
    values = [_applied(node, source, end, other) for end in ends for other in others]
    table = torch.stack(torch.broadcast_tensors(*values))
    return table.amin(0), table.amax(0)


def _other(graph_module: fx.GraphModule, node: fx.Node, source: fx.Node) -> Tensor | None:
    """The constant that `node` adds to `source`, or multiplies or divides it by."""
    if operation(node) not in _AFFINE or source not in node.args[:2] or len(node.args) < 2:
        return None
    first, second = node.args[:2]
    constant = _constant(graph_module, second if first is source else first)
    if constant is None or (node.kwargs.get("alpha", 1) != 1 and operation(node) != "add"):
        return None
    dividing = operation(node) == "div"
    if dividing and (first is not source or node.kwargs.get("rounding_mode") is not None):
        return None
    return None if dividing and bool((constant == 0).any()) else constant


def _applied(node: fx.Node, source: fx.Node, value: Tensor, constant: Tensor) -> Tensor:
    """What `node` makes of `value` in the place of `source`."""
    left, right = (value, constant) if node.args[0] is source else (constant, value)
    alpha: Any = node.kwargs.get("alpha", 1)
    return left + alpha * right if alpha != 1 else _AFFINE[operation(node)](left, right)


def _constant(graph_module: fx.GraphModule, value: Any) -> Tensor | None:
    """A number, or a tensor that the graph holds."""
    if isinstance(value, int | float):
        return torch.tensor(value, dtype=torch.float64)
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return None
    held = attribute(graph_module, str(value.target))
    return held.detach().double().cpu() if isinstance(held, Tensor) else None


def _per_channel(constant: Tensor, channels: int) -> tuple[Tensor, ...]:
    """The constant by channel, where it has a value for each; else its least and largest value."""
    if constant.numel() == 1:
        return (constant.reshape(1),)
    if constant.ndim >= 3 and constant.shape[-3] == constant.numel() == channels:
        return (constant.reshape(channels),)
    return constant.min().reshape(1), constant.max().reshape(1)


def _normalised(norm: BatchNorm, low: Tensor, high: Tensor) -> Bounds | None:
    """Behind a batch norm; None if it has no statistics of its own."""
    if norm.running_mean is None or norm.running_var is None:
        return None
    held: dict[str, Any] = dict(norm.named_parameters(recurse=False))
    mean, variance = norm.running_mean.double().cpu(), norm.running_var.double().cpu()
    scale = torch.rsqrt(variance + norm.eps)
    if "weight" in held:
        scale = scale * held["weight"].detach().double().cpu()
    shift = -mean * scale
    if "bias" in held:
        shift = shift + held["bias"].detach().double().cpu()
    ends = torch.stack([low * scale + shift, high * scale + shift])
    return ends.amin(0), ends.amax(0)


def _with_padding(node: fx.Node, name: str, low: Tensor, high: Tensor) -> Bounds:
    """Behind padding with a number, which an average counts too."""
    value: Any = 0
    if name in _PADS:
        constant = len(node.args) < 3 or name != "pad" or node.args[2] == "constant"
        place = _PADS[name]
        value = node.args[place] if len(node.args) > place else node.kwargs.get("value")
        value = (value or 0) if constant else None
    else:
        padding: Any = node.args[3] if len(node.args) > 3 else 0
        value = 0 if torch.tensor(padding).any() else None
    return (low, high) if value is None else (low.clamp(max=value), high.clamp(min=value))


def _hull(low: Tensor, high: Tensor) -> Bounds:
    return low.min().reshape(1), high.max().reshape(1)
