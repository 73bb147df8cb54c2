"""Optimising images by what a network says of them, without statistics: the loop of such methods.

Pixels are the parameters, between black and white. Methods add what they look at inside the
network; what they share is here: labels, smoothness, moves, and falling rates.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, fx, nn

from datafree.config import InputSpec
from datafree.graph.normalisation import DEVIATION, GREY
from datafree.synthesis._images import chunk_of, chunk_size
from datafree.synthesis.base import Batch, Synthesizer, even_batches
from datafree.tensors import device_of, fast_copy, kept_memory

_SHARED = 0.9  # of the amplitude of a pixel, by all its colours

Loss = Callable[[Tensor, slice], Tensor]
"""A mean over images: of normalised images (b, C, H, W), and which of the batch they are."""
Prior = Callable[[Tensor], Tensor]
"""Of all pixels of a batch: scalar."""


@dataclass(frozen=True)
class Canvas:
    """Pixels that every network is served with in the same unit.

    ``z = (share of white - 0.449) / 0.226`` is an image normalised as most networks on ImageNet
    have it, so that rates and weights of papers hold for networks that read 0..1 or 0..255 too.

    Attributes:
        black: (1, C, 1, 1), of images as the network takes them.
        span: (1, C, 1, 1), from black to white.
    """

    black: Tensor
    span: Tensor

    @classmethod
    def of(cls, spec: InputSpec, device: torch.device) -> Canvas:
        """The canvas of images of `spec`."""
        mean, std = (
            torch.tensor(v, device=device).view(1, -1, *(1,) * (len(spec.shape) - 1))
            for v in (spec.mean, spec.std)
        )
        return cls(-mean / std, 1 / std)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Images as the network takes them."""
        return self.black + self.span * (GREY + DEVIATION * pixels)

    @staticmethod
    def clamp_(pixels: Tensor) -> Tensor:
        """`pixels` themselves, cut at black and white."""
        return pixels.clamp_(-GREY / DEVIATION, (1 - GREY) / DEVIATION)


@dataclass(frozen=True)
class Stage:
    """One run of the optimizer.

    Attributes:
        iterations: steps.
        reach: share of a side that images are rolled by at most, up or down, left or right.
    """

    iterations: int
    reach: float

    def shift(self, shape: tuple[int, ...], generator: torch.Generator) -> tuple[int, ...]:
        """Whole pixels to roll images of `shape` (C, …) by in one step, in every direction."""
        most = [round(self.reach * side) for side in shape[1:]]
        return tuple(int(torch.randint(-side, side + 1, (), generator=generator)) for side in most)


class PixelOptimizer(Synthesizer):
    """Base of methods that judge images by what a network says of them."""

    needs_image: ClassVar[bool] = True

    batch_size: int = Field(default=32, ge=1)
    """Images optimised together, at most."""
    learning_rate: float = Field(default=0.2, gt=0)
    """Adam's rate at its highest, in deviations of ImageNet's pixels per step."""
    warmup: int = Field(default=100, ge=0)
    """Steps in which the rate rises to its highest, at the beginning of a stage; it then falls to 0
    as a cosine does."""
    label_weight: float = Field(default=1.0, ge=0)
    """Weight of the cross-entropy to the classes that images are to show."""
    tv_weight: float = Field(default=0.05, ge=0)
    """Weight of the total variation."""

    def passes(self, count: int) -> float:
        """Every step of every image."""
        return self.batch_iterations * count

    def batch_images(self, teacher: nn.Module, count: int) -> int:
        """Size of the fewest batches of at most `batch_size` images that are about equal."""
        del teacher
        return even_batches(count, self.batch_size)

    def at_once(self, spec: InputSpec, size: int, device: torch.device) -> int:
        """As many as fit a processor's cache; all on a GPU."""
        return min(size, chunk_of(spec.shape, size, device))

    def prepare(self, teacher: nn.Module, spec: InputSpec, generator: torch.Generator) -> Any:
        """A copy of the teacher in the memory layout in which convolutions are fastest."""
        del spec, generator
        return fast_copy(teacher).requires_grad_(False)

    @property
    def batch_iterations(self) -> int:
        """Steps of Adam."""
        return sum(stage.iterations for stage in self.stages())

    @abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """What is done one after the other, each time with a new optimizer."""

    def optimize(
        self, network: fx.GraphModule, pixels: Tensor, loss: Loss, prior: Prior,
        spec: InputSpec, batch: Batch,
    ) -> Tensor:  # fmt: skip
        """Images (B, C, H, W) as the network takes them, on the CPU, after all stages.

        Args:
            network: tells the device.
            pixels: start, (B, C, H, W), in the unit of a `Canvas`.
            loss: of images as the network takes them; a mean over images, so that some are passed
                at a time.
            prior: of all pixels, in the unit of a `Canvas`.
            spec: input of the network.
            batch: random numbers and progress.
        """
        device = device_of(network)
        canvas = Canvas.of(spec, device)
        pixels = canvas.clamp_(pixels.to(device).clone()).requires_grad_()
        size = batch.at_once(chunk_size(pixels))
        with kept_memory():
            for stage in self.stages():
                optimizer = torch.optim.Adam([pixels], lr=self.learning_rate, betas=(0.5, 0.9))
                for done in batch.iterations(stage.iterations):
                    optimizer.param_groups[0]["lr"] = self.learning_rate * rate(
                        done, stage.iterations, self.warmup
                    )
                    shift = stage.shift(spec.shape, batch.generator)
                    pixels.grad = _gradient(pixels, canvas, loss, prior, shift, size)
                    optimizer.step()
                    with torch.no_grad():
                        canvas.clamp_(pixels)
                    batch.step(1)
        return canvas.normalised(pixels.detach()).cpu().contiguous()


def _gradient(
    pixels: Tensor, canvas: Canvas, loss: Loss, prior: Prior,
    shift: tuple[int, ...], size: int,
) -> Tensor:  # fmt: skip
    """Of the loss of the whole batch, with `size` images at a time."""
    (gradient,) = torch.autograd.grad(prior(pixels), [pixels])
    dims = tuple(range(2, pixels.ndim))
    for start in range(0, len(pixels), size):
        part = slice(start, start + size)
        chunk = pixels.detach()[part].requires_grad_()
        seen = torch.roll(chunk, shift, dims) if any(shift) else chunk
        images = canvas.normalised(seen)
        if images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        value = loss(images, part) * (len(chunk) / len(pixels))
        gradient[part] += torch.autograd.grad(value, [chunk])[0]
    return gradient


def rate(done: int, steps: int, warmup: int) -> float:
    """Factor on the rate after `done` of `steps` steps: rises over `warmup`, falls as a cosine.

    A warm-up of more than a fifth of the steps is cut to that.
    """
    warmup = min(warmup, steps // 5)
    if done < warmup:
        return (done + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (steps - warmup)))


def pink_noise(
    count: int, shape: tuple[int, ...], falloff: float, generator: torch.Generator
) -> Tensor:
    """(count, C, …) noise whose amplitude falls with frequency f as ``1 / f^falloff``.

    In the unit of a `Canvas`: every image has mean 0 over all channels and deviation 1. What
    channels share has nine tenths of the amplitude, as colours of photographs mostly agree.

    Args:
        count: images.
        shape: (C, …) of one.
        falloff: 0 is white noise, 1 what photographs have.
        generator: source of the random numbers, on the CPU.
    """
    channels, *sides = shape
    dims = tuple(range(2, 2 + len(sides)))
    axes = torch.meshgrid(*(torch.fft.fftfreq(side) for side in sides), indexing="ij")
    frequency = torch.stack(axes).square().sum(0).sqrt().clamp(min=1 / max(sides))
    white = torch.randn(count, channels + 1, *sides, generator=generator)
    shaped = torch.fft.ifftn(torch.fft.fftn(white, dim=dims) / frequency**falloff, dim=dims).real
    shared, own = shaped[:, :1], shaped[:, 1:]
    mixed = _SHARED * shared + math.sqrt(1 - _SHARED**2) * own if channels > 1 else own
    flat = mixed.flatten(1)
    deviation = flat.std(1, keepdim=True).clamp(min=1e-6)
    return ((flat - flat.mean(1, keepdim=True)) / deviation).view_as(mixed)
