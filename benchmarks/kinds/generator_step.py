"""What a step of Genie's generator costs its optimizer."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from benchmarks.kinds.base import Bench, Kind
from datafree.config import RunConfig
from datafree.synthesis._generator import ImageGenerator
from datafree.synthesis.genie import Genie


class GeneratorStep(Kind):
    """Milliseconds of Adam for all weights of a generator, fused and plain, alternated.

    `generator` is a pass through it there and back, without the network that judges its images.
    """

    pixels: int
    """Side of the images."""
    together: int = 4
    """Images of a pass."""
    rounds: int = 9
    """Steps of each, of which the medians are told, the first left out."""

    def measure(self, config: RunConfig, bench: Bench) -> dict[str, Any]:
        """See the base class."""
        del bench
        method, found = Genie(), dict[str, list[float]]()
        shape = (3, self.pixels, self.pixels)
        random = torch.Generator().manual_seed(config.seed)
        latents = torch.randn(self.together, method.latent_dim, generator=random)
        generator = ImageGenerator(shape, method.latent_dim, random)
        weights = list(generator.parameters())
        steps = {
            name: torch.optim.Adam(weights, lr=method.generator_lr, fused=fused)
            for name, fused in (("fused", True), ("plain", False))
        }
        for _ in range(self.rounds):
            for name, optimizer in steps.items():
                optimizer.zero_grad()
                began = time.perf_counter()
                generator(latents).square().mean().backward()
                passed = time.perf_counter()
                optimizer.step()
                found.setdefault("generator", []).append(passed - began)
                found.setdefault(name, []).append(time.perf_counter() - passed)
        told = {name: 1e3 * statistics.median(times[1:]) for name, times in found.items()}
        count = sum(weight.numel() for weight in weights)
        return {**told, "ratio": told["plain"] / told["fused"], "weights": count / 1e6}
