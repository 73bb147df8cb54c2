"""What the teacher makes of several sets of images: features at its batch norms and before its end.

Everything is taken in one pass over each set. Of wide layers some channels are kept, and of long
ones some values of each, so that a report costs a few per cent of the run it tells of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from datafree.graph.insert import quantizable_layers
from datafree.graph.taps import (
    BatchNorm,
    batch_norms,
    last_linear,
    stored_statistics,
    tap_calls,
)
from datafree.graph.untrained import virgin
from datafree.images import in_pieces
from datafree.losses import sample_statistics

_CHANNELS = 64  # of a layer, evenly spread
_VALUES = 2048  # of a channel over all images


@dataclass(frozen=True)
class NormStatistics:
    """One batch norm, and what arrives at it from one set of images.

    Attributes:
        path: of the batch norm.
        channels: (C,) indices of the channels kept.
        mean: (C,) that the batch norm remembers.
        std: (C,) likewise.
        values: (C, n) some of the values.
        means: (N, C) of every image.
        stds: (N, C) of every image; None where an image has one value per channel.
    """

    path: str
    channels: Tensor
    mean: Tensor
    std: Tensor
    values: Tensor
    means: Tensor
    stds: Tensor | None


@dataclass(frozen=True)
class Features:
    """What the teacher makes of one set of images.

    Attributes:
        norms: by batch norm with statistics, in execution order.
        last: (N, D) what enters the last layer, means over positions.
        outputs: (N, …) what the network returns.
    """

    norms: list[NormStatistics]
    last: Tensor
    outputs: Tensor


class _Gathered:
    """One batch norm while the images pass.

    All room is taken at once. Small tensors that stay, made between the large ones of a pass that
    do not, would keep the system from getting memory back: four times that of the network.
    """

    def __init__(self, layer: BatchNorm, count: int) -> None:
        """Before the first of `count` images."""
        self.layer, self.channels = layer, _spread(layer.num_features)
        self.values = torch.empty(len(self.channels), _VALUES)
        self.means, self.stds = torch.empty(2, count, len(self.channels))
        self.filled = self.seen = 0
        self.deviate = False

    def add(self, features: Tensor, share: float, random: torch.Generator) -> None:
        """Statistics of a batch, and `share` of the `_VALUES` values a channel is to have."""
        chosen = features.index_select(1, self.channels.to(features.device)).float()
        means, stds = sample_statistics(chosen)
        rows = slice(self.seen, self.seen + len(means))
        self.means[rows] = means
        self.deviate = stds is not None
        if stds is not None:
            self.stds[rows] = stds
        self.seen += len(means)
        flat = chosen.transpose(0, 1).reshape(len(self.channels), -1).cpu()
        wanted = min(max(1, round(share * _VALUES)), _VALUES - self.filled)
        if flat.shape[1] > wanted:
            flat = flat[:, torch.randperm(flat.shape[1], generator=random)[:wanted]]
        self.values[:, self.filled : self.filled + flat.shape[1]] = flat
        self.filled += flat.shape[1]

    def statistics(self, path: str) -> NormStatistics:
        """All that was added."""
        mean, std = (one.detach().cpu()[self.channels] for one in stored_statistics(self.layer))
        return NormStatistics(
            path=path,
            channels=self.channels,
            mean=mean,
            std=std,
            values=self.values[:, : self.filled],
            means=self.means[: self.seen],
            stds=self.stds[: self.seen] if self.deviate else None,
        )


def features_of(
    teacher: fx.GraphModule, batches: Iterable[Tensor], count: int, seed: int = 0
) -> Features:
    """What `teacher` makes of images.

    Args:
        teacher: canonical graph with its batch norms; not changed.
        batches: images (B, C, H, W), normalised, on its device.
        count: number of all of them.
        seed: of the values that are kept.
    """
    random = torch.Generator().manual_seed(seed)
    layers = {path: one for path, one in batch_norms(teacher).items() if not virgin(one)}
    gathered = {(path, 0): _Gathered(one, count) for path, one in layers.items()}
    called: dict[tuple[str, int], None] = {}  # path and call of it in a pass, in order
    calls: Counter[str] = Counter()
    share = 0.0
    last: list[Tensor] = []
    outputs: list[Tensor] = []
    name = last_linear(teacher) or quantizable_layers(teacher)[-1]

    def keep(_name: str, features: Tensor, _output: Tensor) -> None:
        linear = name == last_linear(teacher)
        places = tuple(range(1, features.ndim - 1) if linear else range(2, features.ndim))
        last.append((features.mean(places) if places else features).float().cpu())

    def gather(path: str, features: Tensor, _output: Tensor) -> None:
        place = path, calls[path]
        if place not in gathered:
            gathered[place] = _Gathered(layers[path], count)
        gathered[place].add(features, share, random)
        called[place] = None
        calls[path] += 1

    with (
        torch.inference_mode(),
        tap_calls(dict(layers), gather),
        tap_calls({name: teacher.get_submodule(name)}, keep),
    ):
        for images in in_pieces(batches):
            calls.clear()
            share = len(images) / count
            outputs.append(teacher(images).float().cpu())
    norms = [gathered[place].statistics(place[0]) for place in called]
    return Features(norms, torch.cat(last)[:count], torch.cat(outputs))


def _spread(channels: int) -> Tensor:
    """Indices of at most `_CHANNELS` channels, evenly spread."""
    return torch.linspace(0, channels - 1, min(channels, _CHANNELS)).round().long()
