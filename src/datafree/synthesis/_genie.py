"""What training a generator under a network consists of: the objective and the steps (A.6.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from datafree.graph.watched import Statistics, WatchedNetwork
from datafree.losses import Heads, first_logits, input_distance, margin_loss
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
        self,
        network: WatchedNetwork,
        labels: Tensor | None,
        label_weight: float,
        heads: Heads = (),
        margin: float | None = None,
    ) -> None:
        """Judge by `network`, which tells its statistics of all images together."""
        self.network = network
        self.labels = labels
        self.label_weight = label_weight
        self.heads = heads
        self.margin = margin

    def loss(self, images: Tensor) -> Tensor:
        """Scalar loss of `images` (B, C, H, W)."""
        logits = self.network(images)
        total = input_distance(images).mean() + layers_distance(self.network.statistics())
        if self.labels is not None:
            answers = first_logits(logits, self.heads)
            missed = (
                F.cross_entropy(answers, self.labels)
                if self.margin is None
                else margin_loss(answers, self.labels, self.margin)
            )
            total = total + self.label_weight * missed
        return total


def layers_distance(found: Statistics) -> Tensor:
    """``sum_l 1/C_l (|mean_l - mu_l|^2 + |std_l - sigma_l|^2)``, a scalar (Genie, A.6.1).

    Args:
        found: of all images together, one row.
    """
    squares = found.gaps.square() + (found.deviations - found.stored).square()
    return squares[0] @ found.shares()
