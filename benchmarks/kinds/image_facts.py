"""What a set of images tells quantizers.

A layer's output error is ``tr(D E[x x^T] D^T)`` for a change D of its weights, so images stand in
for real ones in learned rounding as far as the second moments of every layer's input agree; and in
calibration as far as ranges do.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from benchmarks.kinds.base import Bench, Kind
from datafree.config import RunConfig
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import quantizable_layers
from datafree.graph.placement import ACTIVATIONS
from datafree.graph.taps import tap_calls, tap_outputs
from datafree.tensors import fast_layout


class ImageFacts(Kind):
    """How images differ from real ones.

    `moments`, the relative Frobenius distance of second moments, mean over layers; `unseen`, the
    mean energy of real inputs where these have 1, mean over layers; `range`, the largest activation
    over that of as many real images, geometric mean over activations; `confidence`, the mean
    largest softmax entry of the float network.
    """

    references: int = 512
    """Real images to compare with."""
    reference_seed: int = 1_000
    """By which they are drawn."""

    def measure(self, config: RunConfig, bench: Bench) -> dict[str, Any]:
        """See the base class."""
        network, images = bench.network(config), self.images(config, bench).images
        real = network.real_images(self.references, self.reference_seed).images
        folded = fast_layout(fold_batch_norms(network.graph))
        pairs = list(zip(second_moments(folded, images), second_moments(folded, real), strict=True))
        distances = [float((ours - theirs).norm() / theirs.norm()) for ours, theirs in pairs]
        ratios = largest_values(folded, images) / largest_values(folded, real[: len(images)])
        with torch.no_grad():
            confidence = folded(images).softmax(1).amax(1).mean()
        return {
            "moments": sum(distances) / len(distances),
            "unseen": sum(unseen(*pair) for pair in pairs) / len(pairs),
            "range": float(ratios.log().mean().exp()),
            "confidence": float(confidence),
        }


def second_moments(folded: fx.GraphModule, images: Tensor) -> list[Tensor]:
    """``E[x x^T]`` of the patches every layer reads, in execution order; groups are ignored."""
    layers = {name: folded.get_submodule(name) for name in quantizable_layers(folded)}
    found: dict[str, Tensor] = {}

    def see(name: str, values: Tensor, _output: Tensor) -> None:
        found[name] = _moments(layers[name], values)

    with torch.no_grad(), tap_calls(layers, see):
        folded(images)
    return [found[name] for name in layers]


def _moments(layer: nn.Module, values: Tensor) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        assert not isinstance(layer.padding, str)  # noqa: S101 - captured layers have numbers
        patches = F.unfold(
            values, layer.kernel_size, layer.dilation, layer.padding, layer.stride
        )  # fmt: skip
        values = patches.transpose(1, 2).flatten(0, 1)
    return values.T.double() @ values.double() / len(values)


def unseen(ours: Tensor, real: Tensor) -> float:
    """Mean energy of real inputs where `ours` have 1: ``tr((ours + r I)^-1 (real + r I)) / d``.

    Rounding that spreads its error evenly over what it sees makes this many times the error on real
    inputs that it would with their own moments. ``r``, a tenth of the mean energy of real inputs,
    leaves out directions that hardly occur.
    """
    ridge = 0.1 * real.diagonal().mean() * torch.eye(len(real), dtype=real.dtype)
    return float(torch.linalg.solve(ours + ridge, real + ridge).diagonal().mean())


def largest_values(folded: fx.GraphModule, images: Tensor) -> Tensor:
    """Largest output of every activation function, by name."""
    found: dict[str, float] = {}
    modules: dict[str, nn.Module] = {
        n: m for n, m in folded.named_modules() if isinstance(m, ACTIVATIONS)
    }
    with torch.no_grad(), tap_outputs(modules, lambda n, y: found.update({n: float(y.max())})):
        folded(images)
    return torch.tensor([found[name] for name in sorted(found)])
