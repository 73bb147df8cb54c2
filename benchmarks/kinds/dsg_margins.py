"""Why DSG's slack helps or does not: how many statistics lie inside its margins."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, fx

from benchmarks.kinds.base import Bench, Kind
from datafree.config import RunConfig
from datafree.graph.alignment import margins
from datafree.graph.taps import stored_statistics, tap_batch_norms
from datafree.losses import sample_statistics

Gaps = list[tuple[Tensor, Tensor]]
"""By layer, gaps of the samples' means and deviations to the stored ones, (B, C) each."""
_GAUSSIAN, _SHOWN = 1024, 128


class DSGMargins(Kind):
    """Percent of (layer, sample, channel) statistics in the band, the loss, and top-1.

    Of Gaussian images, where the optimization starts, of real images, and of the images made.
    Margins are never chosen by these numbers.
    """

    granularity: Literal["sample", "batch"]
    """What the quantile of the gaps runs over."""
    epsilon: float
    """The quantile."""

    def measure(self, config: RunConfig, bench: Bench) -> dict[str, Any]:
        """See the base class."""
        network = bench.network(config)
        graph, spec = network.graph, network.teacher.spec
        noise = torch.randn(_GAUSSIAN, *spec.shape, generator=torch.Generator().manual_seed(0))
        none = torch.zeros(len(gaps(graph, noise[:1])))
        delta, gamma = none, none
        if self.epsilon:
            delta, gamma = margins(graph, noise, self.epsilon, self.granularity)
        own = {"epsilon": self.epsilon, "margin_granularity": self.granularity}
        config = config.model_copy(update={"method_options": config.method_options | own})
        of = {
            "noise": gaps(graph, noise[:_SHOWN]),
            "real": gaps(graph, network.real_images(_SHOWN, 0).images),
            "made": gaps(graph, self.images(config, bench).images),
        }
        found: dict[str, Any] = {}
        for bits in ("W4A4", "W3A3"):
            result = self.run(config.model_copy(update={"bits": bits}), bench)
            found[f"top1_{bits.lower()}"] = result.metrics["top1"]["student"]
            found["test_images"] = result.metrics["test_images"]
        found |= {f"inside_{name}": inside(gap, delta, gamma) for name, gap in of.items()}
        found |= {f"loss_{name}": loss(of[name], delta, gamma) for name in ("noise", "made")}
        found["zeroq_loss_made"] = loss(of["made"], none, none)
        ratios = zip(map(_mean, of["noise"]), map(_mean, of["real"]), strict=True)
        return found | {"gaps_noise_over_real": [ours / real for ours, real in ratios]}


def gaps(graph: fx.GraphModule, images: Tensor) -> Gaps:
    """How far the statistics of every sample are from the stored ones."""
    found: Gaps = []
    with torch.no_grad(), tap_batch_norms(graph) as taps:
        graph(images)
        for layer, feature in taps:
            mean, std = sample_statistics(feature)
            target_mean, target_std = stored_statistics(layer)
            assert std is not None  # noqa: S101 - features have positions
            found.append(((mean - target_mean).abs(), (std - target_std).abs()))
    return found


def inside(found: Gaps, delta: Tensor, gamma: Tensor) -> float:
    """Percent of all statistics whose gap is within its layer's margin."""
    hits = [
        torch.cat(((means <= d).flatten(), (deviations <= g).flatten()))
        for (means, deviations), d, g in zip(found, delta, gamma, strict=True)
    ]
    return 100 * torch.cat(hits).float().mean().item()


def loss(found: Gaps, delta: Tensor, gamma: Tensor) -> float:
    """Mean over samples of the unweighted slack loss, Eq. (5) summed over layers."""
    rows = [
        (means - d).relu().square().sum(1) + (deviations - g).relu().square().sum(1)
        for (means, deviations), d, g in zip(found, delta, gamma, strict=True)
    ]
    return torch.stack(rows).sum(0).mean().item()


def _mean(gap: tuple[Tensor, Tensor]) -> float:
    return torch.cat([part.flatten() for part in gap]).mean().item()
