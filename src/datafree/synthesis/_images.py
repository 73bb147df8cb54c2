"""Optimising images directly against batch-norm statistics: the loop ZeroQ and DSG share."""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from datafree.config import InputSpec
from datafree.graph.taps import BatchNorm, tap_batch_norms
from datafree.losses import (
    STATISTICS_EPS,
    image_norm,
    input_distance,
    sample_statistics,
    slack_distance,
    total_variation,
)
from datafree.synthesis.base import Batch, Synthesizer


@dataclass(frozen=True)
class Alignment:
    """Margins of every batch-norm layer and the weight of every (layer, sample) pair.

    Attributes:
        delta: (N,) margins of the means.
        gamma: (N,) margins of the standard deviations.
        weights: (N, B) or (1, 1).
    """

    delta: Tensor
    gamma: Tensor
    weights: Tensor


class ImageOptimizer(Synthesizer):
    """Base of methods that treat the pixels as parameters (algorithms A.1, A.2).

    Attributes:
        iterations: steps of Adam per batch.
        learning_rate: initial step in normalised pixel space.
        patience: steps without a lower loss after which the rate falls to a tenth.
        min_learning_rate: below which it does not fall.
        label_weight: weight of the cross-entropy to balanced random classes; 0 leaves it out.
        tv_weight: weight of the total variation (DSG's "image prior": 0.01).
        l2_weight: weight of the mean image norm (DSG's "image prior": 0.01).
        jitter: images are rolled by up to this many pixels, another shift every step.
    """

    needs_batch_norm: ClassVar[bool] = True

    iterations: int = Field(default=500, ge=1)
    learning_rate: float = Field(default=0.5, gt=0)
    patience: int = Field(default=100, ge=0)
    min_learning_rate: float = Field(default=1e-4, ge=0)
    label_weight: float = Field(default=0.0, ge=0)
    tv_weight: float = Field(default=0.0, ge=0)
    l2_weight: float = Field(default=0.0, ge=0)
    jitter: int = Field(default=0, ge=0)

    @property
    def batch_iterations(self) -> int:
        """Steps of Adam."""
        return self.iterations

    def prepare(self, teacher: nn.Module, spec: InputSpec, generator: torch.Generator) -> Any:
        """A copy of the teacher in the memory layout in which convolutions are fastest."""
        del spec, generator
        return fast_copy(teacher)

    @abstractmethod
    def alignment(self, layers: int, batch: Batch, state: Any) -> Alignment:
        """Margins and weights of one batch for a network of `layers` batch norms."""

    def make_batch(
        self, teacher: nn.Module, spec: InputSpec, batch: Batch, state: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Optimise one batch from Gaussian noise; see the base class."""
        network: nn.Module = state if isinstance(state, nn.Module) else state.network
        images = torch.randn(batch.size, *spec.shape, generator=batch.generator)
        targets = balanced_targets(batch, spec.classes) if self.label_weight else None
        self._optimize(network, images, targets, batch, state)
        return images, targets

    def _optimize(
        self, network: nn.Module, images: Tensor, targets: Tensor | None, batch: Batch, state: Any
    ) -> None:
        device = next(network.parameters()).device
        pixels = images.to(device, memory_format=_layout(images)).requires_grad_()
        labels = None if targets is None else targets.to(device)
        optimizer = torch.optim.Adam([pixels], lr=self.learning_rate)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.1, patience=self.patience, min_lr=self.min_learning_rate
        )
        with tap_batch_norms(network) as taps:
            with torch.no_grad():
                network(pixels[:1])
            layers = [layer for layer, _ in taps]
            aligned = self.alignment(len(layers), batch, state)
            stored = [stored_statistics(layer) for layer in layers]
            for _ in range(self.iterations):
                shown = self._shifted(pixels, batch.generator)
                logits = network(shown)
                features = [feature for _, feature in taps]
                loss = alignment_loss(features, stored, aligned) + input_distance(pixels).mean()
                loss = loss + self._priors(pixels, logits, labels)
                (pixels.grad,) = torch.autograd.grad(loss, [pixels])
                optimizer.step()
                scheduler.step(loss.item())
                batch.step(1)
        images.copy_(pixels.detach())

    def _shifted(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        if not self.jitter:
            return pixels
        shifts = torch.randint(-self.jitter, self.jitter + 1, (2,), generator=generator).tolist()
        return torch.roll(pixels, shifts, (2, 3))

    def _priors(self, pixels: Tensor, logits: Tensor, targets: Tensor | None) -> Tensor:
        total = logits.new_zeros(())
        if targets is not None:
            total = total + self.label_weight * F.cross_entropy(logits, targets)
        if self.tv_weight:
            total = total + self.tv_weight * total_variation(pixels)
        if self.l2_weight:
            total = total + self.l2_weight * image_norm(pixels)
        return total


def fast_copy(teacher: nn.Module) -> nn.Module:
    """A copy of `teacher` with channels-last weights: same function, faster on CPU."""
    return copy.deepcopy(teacher).to(memory_format=torch.channels_last)  # pyright: ignore


def balanced_targets(batch: Batch, classes: int) -> Tensor:
    """(B,) classes in which every class comes up equally often, up to one, in random order."""
    rounds = -(-batch.size // classes)
    blocks = [torch.randperm(classes, generator=batch.generator) for _ in range(rounds)]
    return torch.cat(blocks)[: batch.size]


def stored_statistics(layer: BatchNorm) -> tuple[Tensor, Tensor]:
    """Running mean and ``sqrt(running variance + 1e-6)`` of a batch norm, each (C,)."""
    mean, variance = layer.running_mean, layer.running_var
    assert mean is not None and variance is not None  # noqa: S101 - lifting builds no other kind
    return mean, torch.sqrt(variance + STATISTICS_EPS)


def alignment_loss(
    features: list[Tensor], stored: list[tuple[Tensor, Tensor]], aligned: Alignment
) -> Tensor:
    """``1/B sum_n sum_l weights[l, n] * loss[l, n]`` with DSG's per-sample slack losses (A.2.3).

    Args:
        features: N inputs of batch-norm layers, each (B, C, …).
        stored: N pairs of running mean and std, each (C,).
        aligned: margins and weights.

    Returns:
        Scalar.
    """
    rows: list[Tensor] = []
    for index, (feature, (mean, std)) in enumerate(zip(features, stored, strict=True)):
        sample_mean, sample_std = sample_statistics(feature)
        row = slack_distance(sample_mean, mean, aligned.delta[index])
        if sample_std is not None:
            row = row + slack_distance(sample_std, std, aligned.gamma[index])
        rows.append(row)
    losses = torch.stack(rows)
    return (losses * aligned.weights.to(losses.device)).sum() / losses.shape[1]


def _layout(images: Tensor) -> torch.memory_format:
    return torch.channels_last if images.ndim == 4 else torch.contiguous_format
