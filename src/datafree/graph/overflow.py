"""Numbers that leave float32: which layer of a network they come from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from datafree.errors import CaptureError
from datafree.graph.taps import BatchNorm, batch_norms


def check_norms(graph_module: fx.GraphModule) -> None:
    """Refuse batch norms that divide by the root of 0 or of a negative number.

    Args:
        graph_module: canonical, its batch norms unfolded.

    Raises:
        CaptureError: ``v + eps`` of a channel is not above 0; the message names the layer.
    """
    for path, norm in batch_norms(graph_module).items():
        variance = norm.running_var
        if variance is None:
            continue
        wrong = variance.double() + norm.eps <= 0
        if bool(wrong.any()):
            least = float(variance[wrong].min())
            raise CaptureError(
                f"the batch norm {path} divides by the root of {least + norm.eps:.3g} in"
                f" {int(wrong.sum())} of its {len(variance)} channels (variance {least:.3g}, eps"
                f" {norm.eps:.3g}): its statistics are damaged, or it needs an eps such as 1e-5"
            )


def source_of_overflow(graph_module: fx.GraphModule, images: Tensor) -> str | None:
    """The first that does not return finite numbers, in words: ``layer 'conv1'``; None if all do.

    What masks make minus infinite counts only where nothing else is wrong.

    Args:
        graph_module: canonical; not changed.
        images: (B, C, H, W) on its device.
    """
    finder = _Finder(graph_module)
    with torch.no_grad():
        finder.run(images)
    node = finder.overflown or finder.masked
    return None if node is None else described(graph_module, node)


def described(graph_module: fx.GraphModule, node: fx.Node) -> str:
    """What `node` computes, by the user's own name for it.

    A layer by its path, an operator by its name and the layer before it.
    """
    if node.op == "call_module" and not _quantizes(graph_module, node):
        return f"layer {node.target!r}"
    layer = layer_behind(graph_module, node)
    name = getattr(node.target, "__name__", str(node.target)).partition(".")[0]
    if node.op == "call_function" and layer is not None:
        return f"the operator {name} ({node.name}) behind layer {layer!r}"
    if layer is not None:
        return f"layer {layer!r}"
    return "the input" if node.op == "placeholder" else f"the operator {name} ({node.name})"


def layer_behind(graph_module: fx.GraphModule, node: fx.Node) -> str | None:
    """Path of the last layer with weights that `node` reads, directly or through operators."""
    seen: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        here = waiting.pop()
        if here in seen:
            continue
        seen.add(here)
        if here.op == "call_module" and _has_weights(graph_module, here):
            return str(here.target)
        waiting.extend(reversed(here.all_input_nodes))
    return None


def _has_weights(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    module = graph_module.get_submodule(str(node.target))
    return isinstance(module, BatchNorm) or next(module.parameters(), None) is not None


def _quantizes(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    module = graph_module.get_submodule(str(node.target))
    return hasattr(module, "zero_point")


class _Finder(fx.Interpreter):
    """Runs a graph and notes the first node whose numbers are not finite."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.overflown: fx.Node | None = None
        self.masked: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        found: Any = super().run_node(n)
        if n.op not in ("call_module", "call_function", "call_method"):
            return found
        if isinstance(found, Tensor):
            if self.overflown is None and bool((found.isnan() | found.isposinf()).any()):
                self.overflown = n
            if self.masked is None and bool(found.isneginf().any()):
                self.masked = n
        return found
