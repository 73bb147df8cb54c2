"""Cross-layer equalization: channels of neighbouring layers get equal ranges (algorithms B.4.2)."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, fx, nn

from datafree.corrections._pairs import Pair, find_pairs, quantizable
from datafree.errors import ModelError
from datafree.quant.modules import QuantizableLayer
from datafree.tensors import shared_copy

_CONVERGED = 2e-7
_MOST_SWEEPS = 1000
_SMALLEST, _LARGEST = 1e-8, 1e8


Range = Literal["magnitude", "width"]


def equalize(
    folded: fx.GraphModule, *, replace_relu6: bool = False, by: Range = "magnitude"
) -> fx.GraphModule:
    """A copy of `folded` whose weights fit one scale per tensor better, with the same outputs.

    For every pair of layers that alone read each other, with the largest magnitudes ``r1_i`` of
    row i of the first weight and ``r2_i`` of column i of the second (Nagel et al. 2019)::

        s_i = sqrt(r1_i / r2_i),   W1_i <- W1_i / s_i,   b1_i <- b1_i / s_i,   W2_:i <- W2_:i s_i

    after which both are ``sqrt(r1_i r2_i)``. Chains of pairs are swept until the weights change by
    less than 2e-7 on average. Channels without a range on either side keep their weights; the
    whole factor of a channel stays within 1e-8 … 1e8.

    With `by` `width`, ranges are ``max - min`` of the channel's weights instead, as wide as an
    affine grid must be; both ways multiply weights of a channel alike, and ranges with them.

    Args:
        folded: float graph with batch norms folded; not changed. Batch norms that did not fold
            separate pairs, as do activations that a positive factor does not pass through.
        replace_relu6: take ReLU6 between two layers for ReLU, which changes the function where
            values exceed 6. Without it such layers are left alone.
        by: what a range is.

    Returns:
        A graph module with the same outputs up to rounding (but for replaced ReLU6).

    Raises:
        ModelError: a weight is not finite; the message names the layer.
    """
    return equalize_with_factors(folded, replace_relu6=replace_relu6, by=by)[0]


def equalize_with_factors(
    folded: fx.GraphModule,
    *,
    replace_relu6: bool = False,
    by: Range = "magnitude",
    only: Collection[str] | None = None,
) -> tuple[fx.GraphModule, dict[str, Tensor]]:
    """`equalize`, and by what the outputs of which layers were divided.

    Errors as in `equalize`.

    Args:
        folded: as in `equalize`, as are the next two.
        replace_relu6: see there.
        by: see there.
        only: paths of layers: only pairs whose second is one of these. None takes all.

    Returns:
        The equalized graph, and the factors (C,) float64 by path of the layer, with which
        `datafree.graph.statistics.rescaled` carries what is known of the outputs along.
    """
    equalized = shared_copy(folded)
    pairs = find_pairs(equalized, through_relu6=replace_relu6)
    pairs = [pair for pair in pairs if only is None or pair.second in only]
    names = dict.fromkeys(name for pair in pairs for name in (pair.first, pair.second))
    layers = {name: _Layer.of(name, quantizable(equalized, name)) for name in names}
    factors = {pair: torch.ones_like(layers[pair.first].bias) for pair in pairs}
    for _ in range(_MOST_SWEEPS if pairs else 0):
        before = {name: layer.weight for name, layer in layers.items()}
        for pair in pairs:
            factors[pair] = _balance(layers[pair.first], layers[pair.second], factors[pair], by)
        if _mean_change(before, layers) < _CONVERGED:
            break
    for name, layer in layers.items():
        layer.store(quantizable(equalized, name))
    _replace_clipped(equalized, pairs)
    equalized.recompile()
    return equalized, {pair.first: factor for pair, factor in factors.items()}


@dataclass
class _Layer:
    """Weight and bias of a layer in float64: many sweeps must not add up rounding errors."""

    weight: Tensor
    bias: Tensor
    groups: int

    @classmethod
    def of(cls, name: str, layer: QuantizableLayer) -> _Layer:
        weight = layer.weight.detach().double()
        if not bool(torch.isfinite(weight).all()):
            raise ModelError(
                f"weights of {name} hold NaN or infinity and cannot be equalized; check the file"
                " they come from"
            )
        bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double()
        return cls(weight, bias, int(getattr(layer, "groups", 1)))

    def store(self, layer: QuantizableLayer) -> None:
        dtype = layer.weight.dtype
        layer.weight = nn.Parameter(self.weight.to(dtype), requires_grad=False)
        if layer.bias is not None:
            layer.bias = nn.Parameter(self.bias.to(dtype), requires_grad=False)

    def columns(self, channels: int) -> Tensor:
        """A view (groups, out / groups, channels / groups, rest) of the weight.

        Row block g of a grouped weight reads channels ``g c .. (g+1) c``; a linear layer behind a
        flattening reads each channel in a run of columns, which is part of the rest here.
        """
        rows = len(self.weight) // self.groups
        return self.weight.reshape(self.groups, rows, channels // self.groups, -1)


def _balance(first: _Layer, second: _Layer, done: Tensor, by: Range) -> Tensor:
    """Equalize one pair; takes and returns the factors (C,) of all sweeps together."""
    channels = len(first.weight)
    columns = second.columns(channels)
    range1 = _range(first.weight.flatten(1), (1,), by)
    range2 = _range(columns, (1, 3), by).flatten()
    alive = (range1 > 0) & (range2 > 0)
    wanted = torch.where(alive, (range1 / range2).sqrt(), 1.0)
    factors = (done * wanted).clamp(_SMALLEST, _LARGEST)
    step = factors / done
    first.weight = first.weight / step.view(-1, *[1] * (first.weight.ndim - 1))
    first.bias = first.bias / step
    scaled = columns * step.view(second.groups, 1, -1, 1)
    second.weight = scaled.reshape(second.weight.shape)
    return factors


def _range(weights: Tensor, dims: tuple[int, ...], by: Range) -> Tensor:
    if by == "magnitude":
        return weights.abs().amax(dims)
    return weights.amax(dims) - weights.amin(dims)


def _mean_change(before: dict[str, Tensor], layers: dict[str, _Layer]) -> float:
    """Largest mean absolute change of a weight; NaN never occurs, as all factors are finite."""
    changes = [float((layers[n].weight - old).abs().mean()) for n, old in before.items()]
    return max(changes, default=math.inf)


def _replace_clipped(equalized: fx.GraphModule, pairs: list[Pair]) -> None:
    for pair in pairs:
        for name in pair.clipped:
            equalized.set_submodule(name, nn.ReLU())
