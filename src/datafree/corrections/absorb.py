"""High biases absorbed by the next layer, so that activations need less range (B.4.3)."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from datafree.corrections._pairs import Pair, find_pairs, quantizable
from datafree.graph.moments import response
from datafree.graph.statistics import Normal, Statistics
from datafree.quant.modules import add_to_bias
from datafree.tensors import shared_copy


def absorb_biases(
    folded: fx.GraphModule, statistics: Statistics, *, deviations: float = 3.0
) -> tuple[fx.GraphModule, dict[str, Normal]]:
    """A copy of `folded` in which ReLUs return less of what they never cut off.

    For every pair of layers with a ReLU between that alone read each other (Nagel et al. 2019,
    section 4.1.3): a channel whose values, normal with mean beta and deviation s, nearly always
    exceed ``c = max(0, beta - 3 s)`` passes on c less, which the second layer gets as bias:

        b1 <- b1 - c,    b2 <- b2 + sum over kernel and channels of W2 c

    Exact where no value is below c, 99.87 % of them, and no zero padding between: a padded zero is
    no longer c below the smallest value. The paper ignores this border, and so does this.

    With ReLU6 between, channels that may reach the upper end, ``beta + 3 s > 6``, are left alone:
    what is cut off there would be c less. Layers without statistics are left alone.

    Args:
        folded: float graph with batch norms folded; not changed.
        statistics: of its layers, see `layer_statistics` (and `rescaled` after equalization).
        deviations: the 3 above.

    Returns:
        The graph, and its statistics: the means of the first layers are c lower.
    """
    absorbed = shared_copy(folded)
    known = dict(statistics)
    for pair in find_pairs(absorbed, through_relu6=True):
        limit = _limit(absorbed, pair)
        if limit is None or pair.first not in known:
            continue
        before = known[pair.first]
        reach = deviations * before.std
        height = (before.mean - reach).clamp(min=0)
        height = torch.where(before.mean + reach <= limit, height, 0.0)
        _move(absorbed, pair, height)
        known[pair.first] = Normal(before.mean - height, before.std)
    absorbed.recompile()
    return absorbed, known


def _limit(graph_module: fx.GraphModule, pair: Pair) -> float | None:
    """Above what the activations between cut off; None unless all are ReLU or ReLU6."""
    between = [graph_module.get_submodule(path) for path in pair.activations]
    between = [module for module in between if not isinstance(module, nn.Identity)]
    if not between or not all(isinstance(m, nn.ReLU | nn.Hardtanh) for m in between):
        return None
    return min(float(getattr(module, "max_val", torch.inf)) for module in between)


def _move(graph_module: fx.GraphModule, pair: Pair, height: Tensor) -> None:
    first, second = (quantizable(graph_module, path) for path in (pair.first, pair.second))
    groups = int(getattr(second, "groups", 1))
    weight = second.weight.detach()
    # Behind a flattening each channel is a run of columns.
    columns = height.repeat_interleave(groups * weight.shape[1] // len(height))
    add_to_bias(first, -height)
    add_to_bias(second, response(weight, groups, columns))
