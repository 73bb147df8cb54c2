"""A network that tells, beside what it returns, how the inputs of its batch norms are distributed.

Hooks see those inputs too (`datafree.graph.taps`), but what is done with them then costs as much
as the network: statistics, batch norm, activation and their gradients each pass over every feature
map. Here one step does all of them, and where a batch norm folds into the layer before it, nothing
is left of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable

from datafree.graph.affine import affine, calls_of
from datafree.graph.fold import fold_back, layers_before
from datafree.graph.taps import BatchNorm, stored_statistics
from datafree.losses import STATISTICS_EPS
from datafree.quant.modules import QuantizableLayer
from datafree.tensors import fast_layout

_FURTHEST = 128.0
"""Deviations that a batch norm may move the mean by and be folded: float32 has 2^24 steps, and
statistics of what it returns lose as many of them."""


@dataclass(frozen=True)
class Statistics:
    """Statistics of all batch norms' inputs side by side, S of them for each of N channels.

    Attributes:
        gaps: (S, N), means less the stored ones.
        deviations: (S, N); of a channel that has one value in all, the stored one.
        stored: (N,) deviations that the batch norms stored.
        channels: of every call of a batch norm, in execution order; their sum is N.
    """

    gaps: Tensor
    deviations: Tensor
    stored: Tensor
    channels: tuple[int, ...]

    def shares(self) -> Tensor:
        """(N,) 1 over the number of channels beside each one in its layer."""
        counts = torch.tensor(self.channels, device=self.stored.device)
        return (1 / counts).repeat_interleave(counts)


class WatchedNetwork(nn.Module):
    """A network whose batch norms were replaced; after a pass, `statistics` are those of it."""

    def __init__(self, network: nn.Module, record: _Record) -> None:
        """Wrap `network`, whose watchers write to `record`."""
        super().__init__()
        self.network = network
        self._record = record
        self._alike = False
        self._constants: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(self, images: Tensor) -> Tensor:
        """What the network returns."""
        self._record.calls.clear()
        return self.network(images)

    def answers(self, images: Tensor) -> Tensor:
        """What the network returns, without statistics, which stay those of the pass before."""
        self._record.on = False
        try:
            return self.network(images)
        finally:
            self._record.on = True

    @property
    def alike(self) -> bool:
        """Whether the last pass had a layer of one value per channel and image."""
        return self._alike

    def statistics(self) -> Statistics:
        """Of the last pass, with their graph; they are told once, so that nothing is kept."""
        seen = list(self._record.calls)
        self._record.calls.clear()
        self._alike = any(one.single for one in seen)
        rows = max(len(one.mean) for one in seen)
        means, variances = (
            torch.cat([part.expand(rows, -1) for part in parts], 1)
            for parts in ([one.mean for one in seen], [one.variance for one in seen])
        )
        if self._constants is None:  # every pass calls the same batch norms
            told = [one.norm.constants() for one in seen]
            centre, ratio, stored = (torch.cat(parts) for parts in zip(*told, strict=True))
            self._constants = centre, ratio, stored
        centre, ratio, stored = self._constants
        deviations = (variances * ratio.square() + STATISTICS_EPS).sqrt()
        channels = tuple(one.mean.shape[1] for one in seen)
        if not all(one.spread for one in seen):
            alone = torch.tensor([not one.spread for one in seen], device=stored.device)
            which = alone.repeat_interleave(torch.tensor(channels, device=stored.device))
            deviations = torch.where(which, stored, deviations)
        return Statistics((means - centre) * ratio, deviations, stored, channels)


@dataclass(frozen=True)
class _Seen:
    """Mean and unbiased variance (S, C) of one call.

    Attributes:
        norm: that was called.
        mean: of what it was given, or returns where it is folded.
        variance: likewise.
        single: a channel has one value in an image.
        spread: a channel has several values in all.
    """

    norm: _Watcher
    mean: Tensor
    variance: Tensor
    single: bool
    spread: bool


@dataclass
class _Record:
    """What watchers of one network share.

    Attributes:
        calls: of the pass so far, in execution order.
        on: whether they are to be added to.
    """

    calls: list[_Seen] = field(default_factory=list["_Seen"])
    on: bool = True


class _Watcher(nn.Module):
    """Stands in for a batch norm, and for the activation behind it if that is cut off linearly."""

    def __init__(self, norm: BatchNorm, record: _Record, *, folded: bool, together: bool) -> None:
        super().__init__()
        self.record = record
        self.together = together
        self.bounds: tuple[float, float] | None = None
        mean, self.stored = stored_statistics(norm)
        factor, offset = (part.to(mean.dtype) for part in affine(norm))
        self.affine = None if folded else (factor, offset)
        self.centre = (mean * factor + offset) if folded else mean.clone()
        self.ratio = 1 / factor if folded else torch.ones_like(mean)

    def constants(self) -> tuple[Tensor, Tensor, Tensor]:
        """What a mean is here if it is the stored one, 1 / slope, and stored deviation: (C,)."""
        return self.centre, self.ratio, self.stored

    def forward(self, features: Tensor) -> Tensor:
        """What batch norm and activation return for `features` (B, C, …)."""
        if not self.record.on:
            return _moved(features, self.affine, self.bounds)
        single = features.ndim == 2 or features[0, 0].numel() == 1
        dims = tuple(range(2, features.ndim))
        dims = (0, *dims) if self.together or single else dims
        out, mean, variance = cast(
            "tuple[Tensor, Tensor, Tensor]",
            _Watch.apply(features, dims, self.affine, self.bounds),
        )
        count = features.numel() // mean.numel()
        rows = -1, features.shape[1]
        self.record.calls.append(
            _Seen(self, mean.view(rows), variance.view(rows), single, count > 1)
        )
        return out


class _Watch(torch.autograd.Function):
    """Mean, variance, affine step and bounds in as few passes as there can be, each way."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        dims: tuple[int, ...],
        step: tuple[Tensor, Tensor] | None,
        bounds: tuple[float, float] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What comes out, and mean and unbiased variance over `dims`, which are kept."""
        mean = features.mean(dims, keepdim=True)
        centred = features - mean
        count = features.numel() // mean.numel()
        variance = centred.square_().sum(dims, keepdim=True) / max(count - 1, 1)
        del centred
        out = _moved(features, step, bounds)
        ctx.step, ctx.bounds, ctx.count = step, bounds, count
        # The layer behind keeps `out` anyway.
        ctx.save_for_backward(features, mean, out if bounds is not None else None)
        return out.view_as(out) if out is features else out, mean, variance

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch calls it by position
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor, None, None, None]:
        """``d mean / d f = 1/n`` and ``d var / d f = 2 (f - mean) / (n - 1)``."""
        features, mean, out = ctx.saved_tensors
        gradient, grad_mean, grad_variance = grad_outputs
        slope = grad_variance * (2 / max(ctx.count - 1, 1))
        offset = grad_mean / ctx.count - slope * mean
        own = False
        if ctx.bounds is not None:
            low, high = ctx.bounds
            gradient, own = torch.ops.aten.hardtanh_backward(gradient, out, low, high), True
        if ctx.step is not None:
            factor = _beside(ctx.step[0], features)
            gradient, own = gradient.mul_(factor) if own else gradient * factor, True
        # A gradient from outside may be another layer's too.
        found = gradient.addcmul_(features, slope) if own else gradient.addcmul(features, slope)
        return found.add_(offset), None, None, None


def _moved(
    features: Tensor, step: tuple[Tensor, Tensor] | None, bounds: tuple[float, float] | None
) -> Tensor:
    """``clip(slope * features + offset)``; `features` themselves where there is neither."""
    out = features
    if step is not None:
        out = torch.addcmul(_beside(step[1], features), features, _beside(step[0], features))
    return out if bounds is None else F.hardtanh(out, *bounds)


def _beside(values: Tensor, features: Tensor) -> Tensor:
    """(C,) as it is multiplied with (B, C, …)."""
    return values.view(1, -1, *[1] * (features.ndim - 2))


def watched(
    network: nn.Module, *, together: bool = False, kept: str | None = None
) -> WatchedNetwork:
    """`network` itself, its batch norms replaced by what tells their statistics.

    A batch norm folds into the layer before it where `fold_batch_norms` would, and where what it
    was given can be told from what it returns: it has a slope in every channel, and an offset of
    at most 128 deviations.

    Args:
        network: in eval mode, the caller's own copy; a canonical graph, or any module, of which
            nothing is folded.
        together: statistics over the batch, one row; else of every image, where it has more than
            one value.
        kept: path of a layer that no norm folds into, since somebody looks at what it returns.
    """
    record = _Record()
    network.requires_grad_(False)
    graph = network if isinstance(network, fx.GraphModule) else None
    calls: Mapping[str, list[fx.Node]] = {} if graph is None else calls_of(graph)
    # One norm may stand at several places.
    places = list(network.named_modules(remove_duplicate=False))
    for path, norm in ((path, one) for path, one in places if isinstance(one, BatchNorm)):
        nodes = calls.get(path, [])
        layers = [] if graph is None else _before(graph, nodes, norm, calls)
        layers = [] if kept in layers else layers
        for name in layers:
            assert graph is not None  # noqa: S101 - or there would be no layers
            fold_back(cast("QuantizableLayer", graph.get_submodule(name)), norm)
        watcher = _Watcher(norm, record, folded=bool(layers), together=together)
        if graph is not None:
            _take_bounds(graph, nodes, watcher)
        network.set_submodule(path, watcher)
    if graph is not None:
        graph.delete_all_unused_submodules()
        graph.recompile()
    return WatchedNetwork(fast_layout(network), record)


def _before(
    graph: fx.GraphModule,
    nodes: list[fx.Node],
    norm: BatchNorm,
    calls: Mapping[str, list[fx.Node]],
) -> list[str]:
    """The layers that `norm` folds back into; none where its input could not be told then."""
    factor, offset = affine(norm)
    mean, std = stored_statistics(norm)
    moved = (factor * mean + offset).abs()
    if not bool((moved <= _FURTHEST * factor.abs() * std).all()) or not bool(factor.all()):
        return []
    return layers_before(graph, nodes, norm, calls)


def _take_bounds(graph: fx.GraphModule, nodes: list[fx.Node], watcher: _Watcher) -> None:
    """Let `watcher` do the work of the ReLU or clip that alone reads each of `nodes`."""
    users = [user for node in nodes for user in node.users]
    if not users or len(users) != len(nodes) or any(len(node.users) != 1 for node in nodes):
        return
    found = {_bounds(graph, user) for user in users}
    if len(found) != 1 or None in found:
        return
    watcher.bounds = found.pop()
    for user in users:
        user.replace_all_uses_with(user.all_input_nodes[0])
        graph.graph.erase_node(user)


def _bounds(graph: fx.GraphModule, node: fx.Node) -> tuple[float, float] | None:
    """Lowest and highest value of an activation that changes nothing between them."""
    if node.op != "call_module":
        return None
    module = graph.get_submodule(str(node.target))
    if isinstance(module, nn.ReLU):
        return 0.0, float("inf")
    if isinstance(module, nn.Hardtanh):
        return float(module.min_val), float(module.max_val)
    return None
