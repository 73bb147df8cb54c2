"""Optimising images directly against batch-norm statistics: the loop ZeroQ and DSG share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, fx, nn

from datafree.config import InputSpec
from datafree.config.inputs import Input
from datafree.errors import ModelError
from datafree.graph.alignment import Alignment, statistics_loss
from datafree.graph.inputs import inputs_of
from datafree.graph.watched import WatchedNetwork, watched
from datafree.losses import (
    Heads,
    correlation_inhibition,
    first_logits,
    image_norm,
    input_distance,
    total_variation,
    unpack,
    values_distance,
)
from datafree.synthesis._settling import Settling
from datafree.synthesis.base import Batch, Synthesizer
from datafree.tensors import device_of, fast_copy, kept_memory

_CHUNK_POSITIONS = 2**18
"""Positions (height x width x images) passed through the network at once on a CPU."""
_ALONE = 2**15
"""Positions of an image beyond which it passes alone: to go back, ResNet-50 keeps twice the memory
of its weights for one of 224 x 224."""


class ImageOptimizer(Synthesizer):
    """Base of methods that treat the pixels as parameters (algorithms A.1, A.2)."""

    paper_options: ClassVar[Mapping[str, Any]] = {"least_fall": 0.0}
    needs_batch_norm: ClassVar[bool] = True
    settled_steps: ClassVar[int] = 210
    """Steps after which losses move no more, to foretell the time: the median of six networks
    (benchmarks/tables/settling_steps.yaml)."""

    iterations: int = Field(default=500, ge=1)
    """Steps of Adam per batch, at most."""
    learning_rate: float = Field(default=0.5, gt=0)
    """Adam's rate at the beginning, in normalised pixels per step."""
    least_fall: float = Field(default=1e-3, ge=0, lt=1)
    """Share of its whole fall that the loss falls by in ten steps, or the rate falls to a tenth,
    and the third time the steps end; 0 makes all steps, as the papers do."""
    patience: int = Field(default=100, ge=0)
    """With `least_fall` 0, steps without a lower loss after which the rate falls to a tenth."""
    min_learning_rate: float = Field(default=1e-4, ge=0)
    """With `least_fall` 0, what the rate does not fall below, in normalised pixels per step."""
    start: Literal["gaussian", "uniform", "tiny"] = "gaussian"
    """What images start from: `gaussian`, N(0, 1), as in the papers; `uniform`, [0, 1), as in DSG's
    code; `tiny`, whole numbers from 0 to 254 less 127.5, divided by 5418.75, as in ZeroQ's code:
    their deviation is 0.0136."""
    label_weight: float = Field(default=0.0, ge=0)
    """Weight of the cross-entropy to balanced random classes; 0 leaves it out."""
    tv_weight: float = Field(default=0.0, ge=0)
    """Weight of the total variation (DSG's "image prior": 0.01); 0 leaves it out."""
    l2_weight: float = Field(default=0.0, ge=0)
    """Weight of the mean Euclidean norm of an image (DSG's "image prior": 0.01); 0 leaves it
    out."""
    correlation_weight: float = Field(default=0.0, ge=0)
    """Weight of the correlation of the images themselves (DSG's SCI, Eq. 9), divided by the number
    of batch norms: 1 in DSG's code; 0 leaves it out, and a batch of one image has none."""
    correlation: Literal["eigvals", "eigvecs_detached", "full"] = "eigvecs_detached"
    """What of the images' similarity is compared with that of random vectors: `eigvals`, its
    eigenvalues; `eigvecs_detached`, its eigenvectors too, the structure term of Eq. (9), without
    gradient through them; `full`, both with all gradients."""
    jitter: int = Field(default=0, ge=0)
    """Pixels that images are rolled by at most, up or down and left or right, before they pass the
    network; another shift every step."""

    @property
    def batch_iterations(self) -> int:
        """Steps of Adam."""
        return self.iterations

    def passes(self, count: int) -> float:
        """As many steps as losses took to settle on networks that were measured, if not all."""
        steps = self.iterations
        return count * (min(steps, self.settled_steps) if self.least_fall else steps)

    def at_once(self, spec: InputSpec, size: int, device: torch.device) -> int:
        """As many as fit a processor's cache; all on a GPU."""
        return min(size, chunk_of(spec.shape, size, device))

    def check(self, teacher: nn.Module) -> None:
        """See the base class; nothing but an image has neighbours to be like, or is rolled.

        Raises:
            ModelError: also, such an option for a network that takes something else.
        """
        super().check(teacher)
        given = [name for name in ("jitter", "tv_weight") if getattr(self, name)]
        if given and isinstance(teacher, fx.GraphModule) and inputs_of(teacher):
            raise ModelError(
                f"{given[0]} is for images, and this network takes something else: leave it out"
            )

    def prepare(self, teacher: nn.Module, spec: InputSpec, generator: torch.Generator) -> Any:
        """A copy of the teacher that tells its statistics."""
        del spec, generator
        return watched(fast_copy(teacher))

    @abstractmethod
    def alignment(self, layers: int, batch: Batch, state: Any) -> Alignment:
        """Margins and weights of one batch for a network of `layers` batch norms."""

    def make_batch(
        self, teacher: nn.Module, spec: InputSpec, batch: Batch, state: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Optimise one batch from noise; see the base class."""
        network: WatchedNetwork = state if isinstance(state, WatchedNetwork) else state.network
        images = first_images((batch.size, *spec.shape), self.start, batch.generator)
        targets = asked_classes(batch, spec) if self.label_weight else None
        self._optimize(network, images, targets, batch, state, spec)
        return images, targets

    def _optimize(
        self,
        network: WatchedNetwork,
        images: Tensor,
        targets: Tensor | None,
        batch: Batch,
        state: Any,
        spec: InputSpec,
    ) -> None:
        device = device_of(network)
        pixels = images.to(device, memory_format=_layout(images)).requires_grad_()
        size = batch.at_once(chunk_size(pixels))
        labels = None if targets is None else targets.to(device)
        with torch.no_grad():
            network(pixels[:1])
            told = network.statistics()
        if network.alike:
            size = batch.size  # they are compared by statistics of all images
        channels = told.channels
        aligned = self.alignment(len(channels), batch, state).by_channel(channels).to(device)
        features = _Features(network, channels, aligned, labels, self.label_weight, spec.outputs)
        with kept_memory():
            self._steps(pixels, features, size, batch, spec)
        images.copy_(pixels.detach())

    def _steps(
        self, pixels: Tensor, features: _Features, size: int, batch: Batch, spec: InputSpec
    ) -> None:
        """Change `pixels` step by step, `size` images passing the network at a time."""
        layers = len(features.channels)
        optimizer = torch.optim.Adam([pixels], lr=self.learning_rate)
        over = self._schedule(optimizer)
        for done in batch.iterations(self.iterations):
            shift = self._shift(batch.generator)
            priors = self._priors(pixels, spec.inputs)
            if self.correlation_weight:
                correlation = self._correlation(pixels, batch.generator)
                priors = priors + correlation / layers
            (gradient,) = torch.autograd.grad(priors, [pixels])
            loss = priors.detach()
            for start in range(0, batch.size, size):
                part = slice(start, start + size)
                chunk_loss, chunk_gradient = features.gradient(pixels, part, shift)
                gradient[part] += chunk_gradient
                loss += chunk_loss
            pixels.grad = gradient
            optimizer.step()
            batch.step(1)
            if over(loss.item()):
                batch.step(self.iterations - done - 1)
                break

    def _schedule(self, optimizer: torch.optim.Optimizer) -> Callable[[float], bool]:
        """What takes in the loss of a step, changes rates, and says whether it was the last."""
        if self.least_fall:
            return Settling(optimizer, self.least_fall).over
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.1, patience=self.patience, min_lr=self.min_learning_rate
        )

        def step(loss: float) -> bool:
            plateau.step(loss)
            return False

        return step

    def _shift(self, generator: torch.Generator) -> tuple[int, int]:
        if not self.jitter:
            return 0, 0
        rows, columns = torch.randint(-self.jitter, self.jitter + 1, (2,), generator=generator)
        return int(rows), int(columns)

    def _correlation(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(pixels.shape, generator=generator).to(pixels.device)
        if len(pixels) < 2:
            return pixels.new_zeros(())
        return self.correlation_weight * correlation_inhibition(pixels, noise, self.correlation)

    def _priors(self, pixels: Tensor, inputs: tuple[Input, ...]) -> Tensor:
        total = _standardised(pixels, inputs)
        if self.tv_weight:
            total = total + self.tv_weight * total_variation(pixels)
        if self.l2_weight:
            total = total + self.l2_weight * image_norm(pixels)
        return total


@dataclass(frozen=True)
class _Features:
    """The part of the loss that goes through the network: a mean over independent images.

    So a batch is passed in chunks whose feature maps stay in the processor's cache; loss and
    gradient are those of the whole batch.
    """

    network: WatchedNetwork
    channels: tuple[int, ...]
    aligned: Alignment
    targets: Tensor | None
    label_weight: float
    heads: Heads

    def gradient(
        self, pixels: Tensor, part: slice, shift: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Contribution of ``pixels[part]`` to the loss of the batch, and its gradient."""
        chunk = pixels.detach()[part].requires_grad_()
        logits = self.network(torch.roll(chunk, shift, (2, 3)) if any(shift) else chunk)
        loss = statistics_loss(self.network.statistics(), self.aligned.of_samples(part))
        if self.targets is not None:
            loss = loss + self.label_weight * F.cross_entropy(
                first_logits(logits, self.heads), self.targets[part]
            )
        loss = loss * (len(chunk) / len(pixels))
        (gradient,) = torch.autograd.grad(loss, [chunk])
        return loss.detach(), gradient


def _standardised(pixels: Tensor, inputs: tuple[Input, ...]) -> Tensor:
    """Distance of all inputs from mean 0 and deviation 1, what lies flat among zeros by itself."""
    if not inputs:
        return input_distance(pixels).mean()
    parts = zip(inputs, unpack(pixels, inputs), strict=True)
    each = [
        (input_distance(part) if one.kind == "image" else values_distance(part)).mean()
        for one, part in parts
    ]
    return torch.stack(each).sum()


def first_images(
    shape: tuple[int, ...], start: Literal["gaussian", "uniform", "tiny"], random: torch.Generator
) -> Tensor:
    """Images of `shape` before the first step; see `ImageOptimizer.start`."""
    if start == "uniform":
        return torch.rand(shape, generator=random)
    if start == "tiny":
        return (torch.randint(255, shape, generator=random) - 127.5) / 5418.75
    return torch.randn(shape, generator=random)


def asked_classes(batch: Batch, spec: InputSpec) -> Tensor | None:
    """(B,) classes that images are asked to be of; None where the network does not tell any."""
    return balanced_targets(batch, spec.answers) if spec.labelled else None


def balanced_targets(batch: Batch, classes: int) -> Tensor:
    """(B,) classes in which every class comes up equally often, up to one, in random order."""
    rounds = -(-batch.size // classes)
    blocks = [torch.randperm(classes, generator=batch.generator) for _ in range(rounds)]
    return torch.cat(blocks)[: batch.size]


def _layout(images: Tensor) -> torch.memory_format:
    return torch.channels_last if images.ndim == 4 else torch.contiguous_format


def chunk_size(images: Tensor) -> int:
    """How many of (B, C, …) to pass together: those that fit a processor's cache; all on a GPU.

    Losses are means over images, so that the number changes nothing but the order of sums.
    """
    return chunk_of(images.shape[1:], len(images), images.device)


def chunk_of(shape: Sequence[int], count: int, device: torch.device) -> int:
    """`chunk_size` of `count` images of `shape` (C, …) on `device`."""
    if device.type != "cpu":
        return count
    positions = math.prod(shape[1:])
    return 1 if positions > _ALONE else max(1, _CHUNK_POSITIONS // positions)
