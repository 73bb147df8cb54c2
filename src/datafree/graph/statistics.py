"""What batch norms remember of the layers before them, kept through folding (algorithms B.4.1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx

from datafree.graph.affine import count_calls
from datafree.graph.branches import Merged
from datafree.graph.fold import Folded, fold_and_tell
from datafree.graph.taps import BatchNorm
from datafree.graph.untrained import virgin


@dataclass(frozen=True)
class Normal:
    """Mean and deviation by channel of what a layer returns, over the data it was trained on.

    Attributes:
        mean: (C,) float64.
        std: (C,) float64, not negative.
    """

    mean: Tensor
    std: Tensor


Statistics = Mapping[str, Normal]
"""By path of the layer in the folded graph; layers without a batch norm are missing."""


def layer_statistics(graph_module: fx.GraphModule) -> dict[str, Normal]:
    """What the layers of the *folded* graph return, read from the batch norms of this one.

    A batch norm of slope g, offset beta, and running variance v returns the mean beta and the
    deviation ``|g| sqrt(v / (v + eps))``: the paper's ``|g|``, but right for a channel that is
    constant too. It stands under the path of the layer it folds back into, or its own where it
    stays. Of a layer called several times, such as one that looks at two images, it is over all
    calls, as it was learned. Batch norms that several layers share, that stay and are called
    several times, that fold into the layers after them, or without data since they were created
    (`datafree.graph.untrained`) give nothing.

    A convolution that branches became returns their sum: means add, deviations add in quadrature,
    since branches of a sum count as uncorrelated here as everywhere. It is missing where a branch
    has no batch norm.

    Args:
        graph_module: the canonical graph before `fold_batch_norms`; not changed.
    """
    return told_statistics(fold_and_tell(graph_module))


def told_statistics(folded: Folded) -> dict[str, Normal]:
    """`layer_statistics` of the graph that `folded` was made from."""
    layers = Counter(map(id, folded.norms.values()))
    branches = {
        path: _output(norm)
        for path, norm in folded.norms.items()
        if layers[id(norm)] == 1 and not virgin(norm)
    }
    sums = {record.path: _sum(record, branches) for record in folded.merged}
    called = count_calls(folded.graph)
    known = {path: sums.get(path, normal) for path, normal in branches.items()} | sums
    return {path: normal for path, normal in known.items() if normal and path in called}


def rescaled(statistics: Statistics, factors: Mapping[str, Tensor]) -> dict[str, Normal]:
    """`statistics` of a network whose layers return 1 / `factors` of what they did.

    Args:
        statistics: before.
        factors: (C,) by path, as `equalize_with_factors` returns them; other layers stay.
    """
    return {
        path: Normal(normal.mean / factors[path], normal.std / factors[path])
        if path in factors
        else normal
        for path, normal in statistics.items()
    }


def _output(norm: BatchNorm) -> Normal:
    variance = norm.running_var
    assert variance is not None  # noqa: S101 - lifting builds no other kind
    # Averaged weights may have a variance a little below 0.
    kept = variance.double().clamp(min=0)
    std = (kept / (kept + norm.eps)).sqrt()
    weight = cast("Tensor | None", norm.weight)
    bias = cast("Tensor | None", norm.bias)
    if weight is not None:
        std = std * weight.detach().double().abs()
    mean = std.new_zeros(len(std)) if bias is None else bias.detach().double()
    return Normal(mean, std)


def _sum(merged: Merged, branches: Statistics) -> Normal | None:
    """What `merged` returns, if that is known of all its branches."""
    told = merged.told or ()
    if not told or any(path not in branches for path, _ in told):
        return None
    means = [branches[path].mean * factor for path, factor in told]
    variances = [(branches[path].std * factor).square() for path, factor in told]
    return Normal(torch.stack(means).sum(0) + merged.shift, torch.stack(variances).sum(0).sqrt())
