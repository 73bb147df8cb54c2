"""What training a generator under a network consists of: the objective and the steps (A.6.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.graph.taps import BatchNorm, batch_norms, stored_statistics
from datafree.losses import Heads, batch_distance, first_logits, input_distance
from datafree.synthesis._generator import ImageGenerator


@dataclass(frozen=True)
class Generated:
    """A generator with the latent vectors it was trained with.

    Attributes:
        generator: on the device of the network.
        latents: (B, latent).
        images: what it made of them last, (B, C, H, W), before the last update.
        targets: classes they were trained towards, (B,), or None.
    """

    generator: ImageGenerator
    latents: Tensor
    images: Tensor
    targets: Tensor | None


@dataclass(frozen=True)
class Steps:
    """The two optimizers and their schedules."""

    embedding: torch.optim.Optimizer
    weights: torch.optim.Optimizer
    plateau: torch.optim.lr_scheduler.ReduceLROnPlateau
    decay: torch.optim.lr_scheduler.LRScheduler

    def take(self, loss: Tensor) -> None:
        """One step down the gradient of `loss`."""
        for optimizer in (self.embedding, self.weights):
            optimizer.zero_grad()
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        for optimizer in (self.embedding, self.weights):
            optimizer.step()
        self.plateau.step(loss.item())
        self.decay.step()


class Objective:
    """What the images are judged by: their own statistics, the network's, and their classes."""

    def __init__(
        self, network: nn.Module, labels: Tensor | None, label_weight: float, heads: Heads = ()
    ) -> None:
        self.network = network
        self.labels = labels
        self.label_weight = label_weight
        self.heads = heads
        self.stored = {layer: stored_statistics(layer) for layer in batch_norms(network).values()}

    def loss(self, images: Tensor, taps: list[tuple[BatchNorm, Tensor]]) -> Tensor:
        """Scalar loss of `images` (B, C, H, W); `taps` fills up while they pass the network."""
        logits = self.network(images)
        total = input_distance(images).mean()
        for layer, features in taps:
            total = total + batch_distance(features, *self.stored[layer])
        if self.labels is not None:
            answers = first_logits(logits, self.heads)
            total = total + self.label_weight * F.cross_entropy(answers, self.labels)
        return total
