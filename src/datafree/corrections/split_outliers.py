"""Outlier channel splitting: input channels with large weights become two (algorithms B.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from datafree.config import Scheme
from datafree.errors import ConfigError, ModelError
from datafree.graph.affine import count_calls
from datafree.graph.image import image_bounds
from datafree.graph.insert import first_calls, weight_bits, weight_quantizer
from datafree.quant.modules import ChannelCopies
from datafree.tensors import shared_copy

_MOST_ROUNDS = 20
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def split_outliers(
    folded: fx.GraphModule, ratio: float, scheme: Scheme, *, quantization_aware: bool = True
) -> fx.GraphModule:
    """A copy of `folded` whose largest weights are halved, with the same outputs.

    ``ceil(ratio * C)`` times per convolution of C input channels, the channel with the largest
    weight is computed with twice, each with about half the weight (Zhao et al. 2019). With the
    weight's step D, as fitted to the weights after all splits,

        w  ->  w / 2 - D / 4,  w / 2 + D / 4

    so that the two rounded halves sum to the rounded w, where halves alike (``quantization_aware``
    off) may round the same way twice. A channel may be split several times. Layers that read the
    network's input, grouped convolutions, layers called several times, linear layers and those that
    stay in float stay.

    Args:
        folded: float graph with batch norms folded; not changed. Split after all that moves weights
            between layers, such as equalization.
        ratio: how much wider the inputs get, at most 1; the paper has 0.01 to 0.05.
        scheme: the student's, for the steps.
        quantization_aware: see above.

    Returns:
        A graph with the same outputs up to rounding; `ChannelCopies` stand before split layers.

    Raises:
        ConfigError: `ratio` is out of range.
        ModelError: a weight is not finite; the message names the layer.
    """
    if not 0 < ratio <= 1:
        raise ConfigError(f"the share of channels to split must be above 0, at most 1: got {ratio}")
    split = shared_copy(folded)
    calls, images = first_calls(split), image_bounds(split, None)
    times_called, bits = count_calls(split), weight_bits(split, scheme)
    for path, node in calls.items():
        layer = split.get_submodule(path)
        if not isinstance(layer, _CONVOLUTIONS) or layer.groups > 1 or times_called[path] > 1:
            continue
        if path not in bits:  # stays in float
            continue
        if node.all_input_nodes[0] in images:
            continue
        weight = layer.weight.detach()
        if not bool(torch.isfinite(weight).all()):
            raise ModelError(
                f"weights of {path} hold NaN or infinity and cannot be split; check the file they"
                " come from"
            )
        order = split_order(weight, math.ceil(ratio * layer.in_channels))
        step = _step(weight, order, bits[path], scheme)
        wide = split_weight(weight, order, step if quantization_aware else None)
        layer.weight = nn.Parameter(wide.to(weight.dtype), requires_grad=False)
        layer.in_channels = wide.shape[1]
        _copy_channels(split, node, origins(weight.shape[1], order).to(weight.device))
    split.graph.lint()
    split.recompile()
    return split


def split_order(weight: Tensor, count: int) -> list[int]:
    """Which column to split, `count` times: the one with the largest magnitude after those before.

    Args:
        weight: (O, C, …).
        count: number of splits.

    Returns:
        Indices of columns; the second half of each split is appended as the last column.
    """
    largest: list[float] = weight.abs().transpose(0, 1).flatten(1).amax(1).tolist()
    order: list[int] = []
    for _ in range(count):
        column = max(range(len(largest)), key=largest.__getitem__)
        order.append(column)
        largest[column] /= 2
        largest.append(largest[column])
    return order


def origins(channels: int, order: Sequence[int]) -> Tensor:
    """Which of `channels` columns each column comes from after splitting in this `order`."""
    origin = list(range(channels))
    for column in order:
        origin.append(origin[column])
    return torch.tensor(origin)


def split_weight(weight: Tensor, order: Sequence[int], step: Tensor | None = None) -> Tensor:
    """The weight (O, C + splits, …) after splitting columns of `weight` (O, C, …) in this `order`.

    Args:
        weight: of the layer.
        order: from `split_order`.
        step: D, scalar or (O, 1, …) like a quantizer's scale; None halves without an offset.
    """
    offset = 0.0 if step is None else (step[:, 0] if step.ndim else step).double() / 4
    columns = list(weight.double().unbind(1))
    for column in order:
        half = columns[column] / 2
        columns[column] = half - offset
        columns.append(half + offset)
    return torch.stack(columns, 1)


def _step(weight: Tensor, order: Sequence[int], bits: int, scheme: Scheme) -> Tensor:
    """The step that fits the split weight, which itself depends on it: a fixed point."""
    step: Tensor | None = None
    for _ in range(_MOST_ROUNDS):
        before, split = step, split_weight(weight, order, step)
        step = weight_quantizer(split.to(weight.dtype), bits, scheme).scale
        if before is not None and torch.equal(before, step):
            break
    assert step is not None  # noqa: S101 - there is at least one round
    return step


def _copy_channels(split: fx.GraphModule, node: fx.Node, origin: Tensor) -> None:
    name = f"{node.name}_copies"
    split.add_submodule(name, ChannelCopies(origin))
    before = node.all_input_nodes[0]
    with split.graph.inserting_before(node):
        node.replace_input_with(before, split.graph.call_module(name, (before,)))
