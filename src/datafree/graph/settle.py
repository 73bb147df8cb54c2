"""The last step of a student: its numbers become those that the target computes with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from datafree.graph.edges import fuses, module_of, operator_of, origin
from datafree.graph.sizes import values_read
from datafree.quant.modules import QUANTIZED, ActivationQuantizer, QuantizedLayer, Quantizer
from datafree.targets import Target, load_target

_ROUNDS = 3
_LARGEST_BIAS = 2.0**30  # codes; the sum of products has as much room left


def rules_of(student: fx.GraphModule) -> Target:
    """The rules of the target that `student` was made for."""
    return load_target(str(student.meta.get("target", "paper")))


def settle(student: fx.GraphModule) -> fx.GraphModule:
    """`student` itself, its ranges and biases moved to numbers that its target has; in place.

    Scales and zero points that were learned go back to those the grids allow; a scale in front of
    which values end at 6 does not reach beyond; scales are as large as the target's smallest range
    and its ratios of scales ask for. Where the target adds biases as int32, a bias lies
    on the grid of the sums, ``b = round(b / (s_x s_w)) s_x s_w`` with the scales of the layer's
    input and weight, and a weight's scale is at least ``|b| / (2^30 s_x)``, so that no bias is too
    large for its integer: runtimes lose it otherwise without a word. The bias of a layer whose
    calls read several scales stays as it is; files have a row of codes for each.

    Args:
        student: calibrated.
    """
    rules = rules_of(student)
    for node in student.graph.nodes:
        quantizer = module_of(student, node)
        if isinstance(quantizer, ActivationQuantizer) and quantizer.has_range:
            _settle_range(quantizer, _end(student, node.all_input_nodes[0]))
    _settle_scales(student, rules)
    if rules.integer_bias:
        for path, quantizers in read_quantizers(student).items():
            layer = student.get_submodule(path)
            assert isinstance(layer, QUANTIZED)  # noqa: S101 - only these are listed
            scales = [quantizer.scale for quantizer in quantizers if quantizer is not None]
            if len(scales) == len(quantizers) and layer.weight_quantizer.enabled:
                _settle_bias(layer, scales)
    return student


def input_quantizers(student: fx.GraphModule) -> dict[str, ActivationQuantizer | None]:
    """The quantizer of what each quantized layer reads, by path in execution order.

    None where there is none, where it is switched off or has no range, and where several calls of
    the layer read different ones.
    """
    found = read_quantizers(student)
    return {path: read[0] if len(read) == 1 else None for path, read in found.items()}


def read_quantizers(student: fx.GraphModule) -> dict[str, tuple[ActivationQuantizer | None, ...]]:
    """The quantizers of what the calls of each quantized layer read, each once.

    By path in execution order; None among them where a call reads none, or one that is switched off
    or has no range.
    """
    found: dict[str, tuple[ActivationQuantizer | None, ...]] = {}
    for node in student.graph.nodes:
        if not isinstance(module_of(student, node), QUANTIZED):
            continue
        path = str(node.target)
        before = module_of(student, origin(student, node.all_input_nodes[0]))
        quantizer = before if isinstance(before, ActivationQuantizer) else None
        if quantizer is not None and not (quantizer.enabled and quantizer.has_range):
            quantizer = None
        known = found.get(path, ())
        found[path] = known if quantizer in known else (*known, quantizer)
    return found


def _settle_scales(student: fx.GraphModule, rules: Target) -> None:
    """Let scales reach the target's smallest range and its ratios, in place."""
    for quantizer in student.modules():
        if isinstance(quantizer, Quantizer) and quantizer.has_range and rules.smallest_range:
            grid = quantizer.grid
            smallest = rules.smallest_range / (grid.qmax - grid.qmin)
            quantizer.scale = quantizer.scale.clamp(min=smallest)
    if rules.ratios is not None:
        for _ in range(_ROUNDS):  # a scale that grew may be another kernel's input
            for node in student.graph.nodes:
                _settle_ratio(student, node, rules.ratios)


def _settle_ratio(student: fx.GraphModule, node: fx.Node, limits: tuple[float, float]) -> None:
    """Keep the step of what a kernel computes within `limits` of its output's step.

    Beyond them are only tensors that are all but constant: their grids become coarser.
    """
    behind = _quantizer_behind(student, node)
    before = [module_of(student, origin(student, source)) for source in values_read(node)]
    scales = [q.scale for q in before if isinstance(q, ActivationQuantizer) and q.has_range]
    layer = module_of(student, node)
    kind = operator_of(student, node)
    if behind is None or len(scales) < len(before) or kind is None:
        return
    low, high = limits
    if isinstance(layer, QUANTIZED):
        steps = [scales[0] * layer.weight_quantizer.scale.max()]
    else:
        steps = [scales[0] * scales[1]] if kind == "mul" else scales
    behind.scale = torch.stack([behind.scale, *(step / high for step in steps)]).max()
    if kind == "add":
        for quantizer in before:
            if isinstance(quantizer, ActivationQuantizer):
                quantizer.scale = torch.maximum(quantizer.scale, behind.scale * low)


def _quantizer_behind(student: fx.GraphModule, node: fx.Node) -> ActivationQuantizer | None:
    """The quantizer of what `node` computes, perhaps behind an activation function."""
    readers = list(node.users)
    while len(readers) == 1 and fuses(student, readers[0]):
        readers = list(readers[0].users)
    found = module_of(student, readers[0]) if readers else None
    return found if isinstance(found, ActivationQuantizer) and found.has_range else None


def bias_scale(layer: QuantizedLayer, scale: Tensor) -> Tensor:
    """``s_x s_w`` of a layer as one float32 product: () or (C,).

    Args:
        layer: quantized.
        scale: of its input, ().
    """
    product = scale.float() * layer.weight_quantizer.scale.float()
    return product if layer.weight_quantizer.axis is None else product.flatten()


def _end(student: fx.GraphModule, node: fx.Node) -> float | None:
    """Where the activation function `node` calls ends, if it does."""
    module = module_of(student, node)
    if isinstance(module, nn.Hardtanh) and module.min_val == 0:  # nn.ReLU6 is one
        return float(module.max_val)
    return None


def _settle_range(quantizer: ActivationQuantizer, end: float | None) -> None:
    grid, scale = quantizer.grid, quantizer.scale
    if end is not None and grid.qmin == 0:
        # One bit less, since a runtime that compares in float32 must find it at most as large.
        limit = torch.tensor(end / grid.qmax, dtype=scale.dtype, device=scale.device)
        limit = torch.nextafter(limit, torch.zeros_like(limit))
        scale = torch.minimum(scale, limit)
    quantizer.scale = grid.rounded_scale(scale)
    if not grid.symmetric:
        quantizer.zero_point = grid.rounded_zero_point(quantizer.zero_point)


def _settle_bias(layer: QuantizedLayer, scales: Sequence[Tensor]) -> None:
    """Make room for the bias of `layer`, which reads tensors of `scales`; one puts it on a grid."""
    quantizer = layer.weight_quantizer
    if layer.bias is None:
        return
    bias, scale = layer.bias.detach().double(), torch.stack(list(scales)).min()
    smallest = (bias.abs() / (scale.double() * _LARGEST_BIAS)).float()
    smallest = smallest.max() if quantizer.axis is None else smallest.view_as(quantizer.scale)
    quantizer.scale = quantizer.grid.rounded_scale(torch.maximum(quantizer.scale, smallest))
    if len(scales) == 1:
        step = bias_scale(layer, scale).double()
        layer.bias = nn.Parameter((torch.round(bias / step) * step).float(), requires_grad=False)
