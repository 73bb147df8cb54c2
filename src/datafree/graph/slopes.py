"""How folding scaled the weights of a network."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, fx

from datafree.graph.affine import count_calls, slope
from datafree.graph.branches import Merged
from datafree.graph.fold import fold_and_tell
from datafree.graph.kernels import added


def squared_slopes(graph_module: fx.GraphModule) -> dict[str, Tensor]:
    """By what a step of a weight of the *folded* graph differs from one in front of a batch norm.

    With ``W' = a W`` a step of the same rate moves W by as much and W' by ``a^2`` of what it would
    move by itself. Of branches, ``W' = sum_i a_i f_i W_i``, every one steps: the factor of a tap is
    ``sum_i (a_i f_i)^2`` over the convolutions that have it, a_i the slope of the norm that folded
    into it (1 without), f_i what it is multiplied with since.

    Args:
        graph_module: the canonical graph before `fold_batch_norms`; not changed.

    Returns:
        By path in the folded graph: (O,) where a norm was folded back, or stayed; of the shape
        of the weight where branches were merged. All float64.
    """
    folded = fold_and_tell(graph_module)
    slopes = {path: slope(norm) for path, norm in folded.norms.items()}
    called = count_calls(folded.graph)
    found = {path: own.square() for path, own in slopes.items() if path in called}
    return found | {record.path: _of_branches(record, slopes) for record in folded.merged}


def channel_slopes(graph_module: fx.GraphModule) -> dict[str, Tensor]:
    """By what a step size of the folded graph differs from the one in front of a batch norm.

    A weight per output channel, ``W' = a W``, has steps ``s' = |a| s``.

    Args:
        graph_module: the canonical graph before `fold_batch_norms`; not changed.

    Returns:
        (O,) float64, positive, by path in the folded graph, for layers that a norm was folded back
        into; of branches the root of the mean square. 1 where a channel's slope is 0.
    """
    found: dict[str, Tensor] = {}
    for path, squared in squared_slopes(graph_module).items():
        rows = squared.flatten(1).mean(1) if squared.ndim > 1 else squared
        found[path] = rows.where(rows > 0, 1.0).sqrt()
    return found


def _of_branches(merged: Merged, slopes: dict[str, Tensor]) -> Tensor:
    total = merged.whole
    for path, kernel in merged.kernels:
        own = kernel.scaled(slopes[path]) if path in slopes else kernel
        with_this = added(total, replace(own, weight=own.weight.square()))
        assert with_this is not None  # noqa: S101 - it is part of the whole
        total = with_this
    return total.weight
