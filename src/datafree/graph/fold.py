"""Folding batch norm into the layer beside it (algorithms B.4.1), and branches into one layer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx, nn

from datafree.errors import ModelError
from datafree.graph.affine import affine, calls_of
from datafree.graph.branches import Merged, merge_branches
from datafree.graph.kernels import Convolution
from datafree.graph.moments import response
from datafree.graph.taps import BatchNorm
from datafree.quant.modules import QUANTIZABLE, QUANTIZED, QuantizableLayer, QuantizedLayer
from datafree.tensors import shared_copy


@dataclass(frozen=True)
class Folded:
    """A graph without the batch norms and branches that others take over.

    Attributes:
        graph: with the same outputs up to rounding.
        norms: the batch norm whose output each layer has before branches merge, by its path: of
            every layer that a norm was folded back into (the last one, where there were several),
            or of a norm that stays. One that several layers share remembers none of theirs alone.
        merged: what branches became; their paths are those of layers before.
        forward: paths of the layers that took over a norm in front of them. A channel that hardly
            varies has a large slope there, and a column of weights beside which all others vanish.
    """

    graph: fx.GraphModule
    norms: Mapping[str, BatchNorm]
    merged: tuple[Merged, ...]
    forward: frozenset[str] = frozenset()


def fold_batch_norms(graph_module: fx.GraphModule, *, branches: bool = True) -> fx.GraphModule:
    """A copy of `graph_module` without the batch norms that fold exactly, its branches merged.

    A batch norm folds backwards into the convolution or linear layer whose only use it is,
    ``W' = W g / sqrt(v + eps)``, ``b' = (b - m) g / sqrt(v + eps) + beta``; otherwise forwards into
    the linear layers or convolutions that are its only uses, if these have no padding or its offset
    is 0 in all channels. Layers and norms may be called several times, as by a network that looks
    at two images: a layer takes a norm over where that holds for every call of both. Any other
    norm, such as one between an activation and a padded convolution, stays as its own affine step,
    unless it is a branch of a sum that becomes one convolution, see `merge_branches`.

    Args:
        graph_module: the canonical graph; not changed.
        branches: False leaves all branches, so that layers are those of a student that keeps its
            batch norms.

    Returns:
        A graph module with the same outputs up to rounding.

    Raises:
        ModelError: a layer with its norm is beyond float32; the message names both.
    """
    return fold_and_tell(graph_module).graph if branches else _fold(graph_module)[0]


def fold_and_tell(graph_module: fx.GraphModule) -> Folded:
    """As `fold_batch_norms`, with what became of batch norms and branches."""
    folded, norms, forward = _fold(graph_module)
    merged, records = merge_branches(folded)
    return Folded(merged, norms, records, frozenset(forward))


def _fold(
    graph_module: fx.GraphModule,
) -> tuple[fx.GraphModule, dict[str, BatchNorm], list[str]]:
    """The folded copy, the norms behind its layers, and layers that took one in front of them."""
    folded = copy.deepcopy(graph_module)
    forward: list[str] = []
    calls = calls_of(folded)
    outputs: dict[str, BatchNorm] = {}
    for path, nodes in _norms(folded, calls).items():
        norm = cast("BatchNorm", folded.get_submodule(path))
        before = layers_before(folded, nodes, norm, calls)
        after = [] if before else _layers_after(folded, nodes, norm, calls)
        for name in before:
            fold_back(_layer(folded, name), norm)
        for name in after:
            _fold_forward(_layer(folded, name), norm)
        for name in (*before, *after):
            _check_finite(_layer(folded, name), name, path)
        outputs |= dict.fromkeys(before, norm)
        forward += after
        if before or after:
            _bypass(folded, nodes)
        elif len(nodes) == 1:
            outputs[path] = norm
    return _cleaned(folded), outputs, forward


def fold_into_grids(student: fx.GraphModule) -> fx.GraphModule:
    """A copy of `student` without the batch norms that its weights' grids take over exactly.

    The codes of a weight stay (mirrored where a norm's slope is negative) and its scales, one per
    output channel then, are multiplied by the slope: no value moves to another code. A norm stays
    where `fold_batch_norms` would not fold it back, or where a code has no mirror image on a
    symmetric grid.

    Args:
        student: with plain quantizers that have their ranges; not changed.

    Returns:
        A student with the same outputs up to rounding of sums.
    """
    folded = shared_copy(student)
    calls = calls_of(folded)
    for path, nodes in _norms(folded, calls).items():
        norm = cast("BatchNorm", folded.get_submodule(path))
        layers = layers_before(folded, nodes, norm, calls)
        # Of several layers one might take the norm over and another not.
        layer = _layer(folded, layers[0]) if len(layers) == 1 else None
        if isinstance(layer, QUANTIZED) and _take_over(layer, norm):
            _bypass(folded, nodes)
    return _cleaned(folded)


def _norms(
    graph_module: fx.GraphModule, calls: Mapping[str, list[fx.Node]]
) -> dict[str, list[fx.Node]]:
    """The calls of every batch norm, those of each in execution order."""
    return {
        path: nodes
        for path, nodes in calls.items()
        if isinstance(graph_module.get_submodule(path), BatchNorm)
    }


def _bypass(graph_module: fx.GraphModule, nodes: list[fx.Node]) -> None:
    """Take all calls of a norm out: their readers read what they read."""
    for node in nodes:
        node.replace_all_uses_with(node.all_input_nodes[0])
        graph_module.graph.erase_node(node)


def _cleaned(graph_module: fx.GraphModule) -> fx.GraphModule:
    """`graph_module` without the modules that nothing calls any more."""
    graph_module.delete_all_unused_submodules()
    graph_module.graph.lint()
    graph_module.recompile()
    return graph_module


def _layer(graph_module: fx.GraphModule, path: str) -> QuantizableLayer:
    return cast("QuantizableLayer", graph_module.get_submodule(path))


def _only_calls(
    graph_module: fx.GraphModule, nodes: list[fx.Node], calls: Mapping[str, list[fx.Node]]
) -> list[str]:
    """Paths of the layers that `nodes` call, if these are layers and all of their calls."""
    if any(node.op != "call_module" for node in nodes):
        return []
    paths = list(dict.fromkeys(str(node.target) for node in nodes))
    if any(not isinstance(graph_module.get_submodule(path), QUANTIZABLE) for path in paths):
        return []
    return paths if sum(len(calls[path]) for path in paths) == len(set(nodes)) else []


def layers_before(
    graph_module: fx.GraphModule,
    nodes: list[fx.Node],
    norm: BatchNorm,
    calls: Mapping[str, list[fx.Node]],
) -> list[str]:
    """The layers that `norm`, called by `nodes`, folds back into; none where it does not."""
    sources = [node.all_input_nodes[0] for node in nodes]
    if any(len(source.users) > 1 for source in sources):
        return []
    paths = _only_calls(graph_module, sources, calls)
    layers = [_layer(graph_module, path) for path in paths]
    fit = all(
        layer.weight.shape[0] == norm.num_features
        and (_is_flat(norm) or not isinstance(layer, nn.Linear))
        for layer in layers
    )
    return paths if fit else []


def _layers_after(
    graph_module: fx.GraphModule,
    nodes: list[fx.Node],
    norm: BatchNorm,
    calls: Mapping[str, list[fx.Node]],
) -> list[str]:
    """The layers `norm`, called by `nodes`, folds forward into: all its readers, or none."""
    paths = _only_calls(graph_module, [user for node in nodes for user in node.users], calls)
    return paths if all(_reads(_layer(graph_module, path), norm) for path in paths) else []


def _reads(layer: QuantizableLayer, norm: BatchNorm) -> bool:
    """Whether `layer` can take over a norm in front of it."""
    if isinstance(layer, nn.Linear):
        return _is_flat(norm) and layer.in_features == norm.num_features
    # A padded zero would have to be the offset.
    return not _pads(layer) or not bool(affine(norm)[1].any())


def _pads(layer: Convolution) -> bool:
    """Whether `layer` reads zeros around the image."""
    return layer.padding != "valid" if isinstance(layer.padding, str) else any(layer.padding)


def _is_flat(norm: nn.Module) -> bool:
    """Whether the channels of `norm` are the last dimension, as those of a linear layer are."""
    return isinstance(norm, nn.BatchNorm1d) and getattr(norm, "input_rank", 2) == 2


def _set(layer: QuantizableLayer, weight: Tensor, bias: Tensor) -> None:
    dtype = layer.weight.dtype
    layer.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    layer.bias = nn.Parameter(bias.to(dtype), requires_grad=False)


def _check_finite(layer: QuantizableLayer, name: str, norm: str) -> None:
    """Refuse a layer that its batch norm took beyond float32."""
    for tensor in (layer.weight, layer.bias):
        if tensor is not None and not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"layer {name!r} with its batch norm {norm!r} folded into it has weights beyond"
                " float32: check the weights of both, and the norm's variance"
            )


def _bias(layer: QuantizableLayer) -> Tensor | float:
    return 0.0 if layer.bias is None else layer.bias.double()


def fold_back(layer: QuantizableLayer, norm: BatchNorm) -> None:
    """Let `layer` do what `norm` behind it does: ``W' = W g / sqrt(v + eps)``, in place."""
    factor, offset = affine(norm)
    weight = layer.weight.double()
    scaled = weight * factor.view(-1, *[1] * (weight.ndim - 1))
    _set(layer, scaled, _bias(layer) * factor + offset)


def _fold_forward(layer: QuantizableLayer, norm: BatchNorm) -> None:
    factor, offset = affine(norm)
    weight = layer.weight.double()
    groups = int(getattr(layer, "groups", 1))
    # Row block g of the weight reads input channels g*c .. (g+1)*c.
    grouped = weight.view(groups, weight.shape[0] // groups, weight.shape[1], -1)
    per_group = factor.view(groups, 1, weight.shape[1], 1)
    shift = response(weight, groups, offset)
    _set(layer, (grouped * per_group).view_as(weight), shift + _bias(layer))


def _take_over(layer: QuantizedLayer, norm: BatchNorm) -> bool:
    """Put `norm` into weight, bias and grid of `layer`; whether that was possible."""
    quantizer = layer.weight_quantizer
    if not quantizer.enabled:
        fold_back(layer, norm)
        return True
    factor, offset = affine(norm)
    grid, weight = quantizer.grid, layer.weight.detach()
    per_channel = factor.view(-1, *[1] * (weight.ndim - 1))
    mirrored = per_channel < 0
    codes, zero_point = quantizer.codes(weight), quantizer.zero_point
    if grid.symmetric and bool(((codes == grid.qmin) & mirrored).any()):
        return False
    ends = 0 if grid.symmetric else grid.qmin + grid.qmax
    scale = (quantizer.scale.double() * per_channel.abs()).float()
    # A channel that the norm switches off keeps its scale, with codes of value 0.
    off = scale < torch.finfo(scale.dtype).tiny
    scale = torch.where(off, quantizer.scale, scale)
    signs = per_channel.sign().masked_fill(off, 0)
    _set(layer, (codes - zero_point) * signs * scale, _bias(layer) * factor + offset)
    quantizer.scale = scale
    quantizer.zero_point = torch.where(mirrored, ends - zero_point, zero_point).expand_as(scale)
    quantizer.axis = 0
    return True
