"""From the captured network to the float network that is quantized: folded, then corrected."""

from __future__ import annotations

from torch import fx

from datafree.config import RunConfig
from datafree.corrections.absorb import absorb_biases
from datafree.corrections.equalize import equalize_with_factors
from datafree.corrections.split_outliers import split_outliers
from datafree.graph.fold import fold_and_tell
from datafree.graph.statistics import Statistics, rescaled, told_statistics


def prepare(graph: fx.GraphModule, config: RunConfig) -> tuple[fx.GraphModule, Statistics]:
    """The float network `config` quantizes, with what batch norms told of its layers.

    Batch norms are folded and branches merged; then, as `config` says, weights equalized, high
    biases absorbed and outliers split, in this order: each needs what those before leave. A layer
    that took a norm over which stood in front of it is equalized with the one before it in any
    case, where only a ReLU stands between: else one column of its weights may fill the whole grid.

    Args:
        graph: the canonical graph; not changed.
        config: of the run; its scheme tells the steps that outliers are split by.
    """
    found = fold_and_tell(graph)
    folded, statistics = found.graph, told_statistics(found)
    if config.equalize or found.forward:
        folded, factors = equalize_with_factors(
            folded,
            replace_relu6=config.equalize and config.replace_relu6,
            by=config.equalize_by,
            only=None if config.equalize else found.forward,
        )
        statistics = rescaled(statistics, factors)
    if config.absorb_biases:
        folded, statistics = absorb_biases(folded, statistics)
    if config.split_outliers:
        folded = split_outliers(folded, config.split_outliers, config.scheme)
    return folded, statistics
