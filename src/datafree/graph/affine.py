"""Batch norms in eval mode as affine steps, and which of them nothing else calls."""

from __future__ import annotations

from collections import Counter
from typing import cast

import torch
from torch import Tensor, fx

from datafree.graph.taps import BatchNorm


def count_calls(graph_module: fx.GraphModule) -> Counter[str]:
    """How many nodes call each module, by path."""
    return Counter(str(n.target) for n in graph_module.graph.nodes if n.op == "call_module")


def calls_of(graph_module: fx.GraphModule) -> dict[str, list[fx.Node]]:
    """The nodes that call each module, by path, in execution order."""
    found: dict[str, list[fx.Node]] = {}
    for node in graph_module.graph.nodes:
        if node.op == "call_module":
            found.setdefault(str(node.target), []).append(node)
    return found


def norm_called_once(
    graph_module: fx.GraphModule, node: fx.Node, times_called: Counter[str]
) -> BatchNorm | None:
    """The batch norm `node` calls, if nothing else calls it."""
    if node.op != "call_module" or times_called[str(node.target)] > 1:
        return None
    module = graph_module.get_submodule(str(node.target))
    return module if isinstance(module, BatchNorm) else None


def slope(norm: BatchNorm) -> Tensor:
    """What an eval-mode batch norm multiplies each channel by: (C,), float64, without gradient."""
    variance = norm.running_var
    assert variance is not None  # noqa: S101 - lifting builds no other kind
    inverse = torch.rsqrt(variance.double() + norm.eps)
    # Functional calls may give only one of weight and bias; the stubs know neither case.
    weight = cast("Tensor | None", norm.weight)
    return inverse if weight is None else inverse * weight.detach().double()


def affine(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Slope and offset of an eval-mode batch norm in float64: ``y = slope * x + offset``."""
    mean, factor = norm.running_mean, slope(norm)
    assert mean is not None  # noqa: S101 - lifting builds no other kind
    bias = cast("Tensor | None", norm.bias)
    offset = -mean.double() * factor
    return factor, offset + bias.detach().double() if bias is not None else offset
