"""Rates of weights that batch norms were folded into."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, fx, nn

from datafree.graph.slopes import squared_slopes
from datafree.quant.modules import QUANTIZABLE
from datafree.quant.trained import LSQ


def learn_as_before_folding(student: nn.Module, network: fx.GraphModule) -> None:
    """Let folded weights learn as fast as they would in front of a frozen batch norm.

    With ``W' = a W``, where a is the slope of the norm in each channel, a step of SGD on W moves
    W' by ``a^2`` times what the same step on W' would, and weight decay shrinks both alike. The
    gradients of weights, and of steps or clips of a channel of weights, are therefore multiplied by
    ``a^2`` whenever they are asked for; of branches that became one convolution, by what
    `squared_slopes` tells, averaged over a channel for its step or clip. Where a is small, a rate
    that suits the network as it was trained is too large for the folded one by its square. Biases
    learn as the norm's would anyway; its slope does not learn. Norms that were folded forwards into
    their readers, those that stay, and layers whose channels were split since change nothing.

    Args:
        student: folded, with the paths of `network`; its parameters get hooks. They ask for
            gradients.
        network: the same network with its batch norms.
    """
    for path, squared in squared_slopes(network).items():
        layer = student.get_submodule(path)
        if not isinstance(layer, QUANTIZABLE) or len(layer.weight) != len(squared):
            continue
        rows = squared.flatten(1).mean(1) if squared.ndim > 1 else squared
        factors = {layer.weight: squared if squared.ndim > 1 else _rows(rows, layer.weight)}
        quantizer = getattr(layer, "weight_quantizer", None)
        if isinstance(quantizer, LSQ) and quantizer.learned.numel() == len(squared):
            factors[quantizer.learned] = _rows(rows, quantizer.learned)
        for parameter, factor in factors.items():
            parameter.register_hook(_times(factor.to(parameter)))


def _rows(rows: Tensor, like: Tensor) -> Tensor:
    """(O,) as (O, 1, …) of the rank of `like`."""
    return rows.view(-1, *[1] * (like.ndim - 1))


def _times(factor: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient * factor
