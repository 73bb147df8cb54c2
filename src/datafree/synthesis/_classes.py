"""Images of a class each, that match the statistics of their batch and are seen in crops."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from datafree.config import InputSpec
from datafree.errors import ModelError
from datafree.synthesis.base import Batch, Synthesizer, even_batches
from datafree.tensors import device_of, fast_copy
from datafree.tensors.crops import crop_boxes, cropped


class ClassImages(Synthesizer):
    """Base of methods that ask every image to be of a class (IntraQ, HAST)."""

    needs_batch_norm: ClassVar[bool] = True
    needs_image: ClassVar[bool] = True

    iterations: int = Field(default=1000, ge=1)
    """Steps of Adam per batch."""
    batch_size: int = Field(default=256, ge=1)
    """Images made together, at most."""
    learning_rate: float = Field(default=0.5, gt=0)
    """Adam's rate at the beginning, in normalised pixels per step."""
    patience: int = Field(default=50, ge=0)
    """Steps without a lower loss after which the rate falls to a tenth."""
    min_learning_rate: float = Field(default=1e-4, ge=0)
    """Rate that the learning rate does not fall below, in normalised pixels per step."""
    crop_probability: float = Field(default=0.5, ge=0, le=1)
    """Probability of a step to see crops of the images instead of the whole ones."""
    crop_scale: float = Field(default=0.5, gt=0, le=1)
    """Smallest area of a crop, as a share of the image's."""

    @property
    def batch_iterations(self) -> int:
        """Steps of Adam."""
        return self.iterations

    def batch_images(self, teacher: nn.Module, count: int) -> int:
        """Size of the fewest batches of at most `batch_size` images that are about equal."""
        del teacher
        return even_batches(count, self.batch_size)

    def frozen(self, teacher: nn.Module, spec: InputSpec) -> nn.Module:
        """A copy of the teacher in the memory layout in which convolutions are fastest.

        Raises:
            ModelError: it tells no classes.
        """
        if not spec.labelled:
            raise ModelError(
                f"{self.name} asks images to be of a class, and this network tells none"
                f" ({spec.task}); use the method zeroq or genie, which do without"
            )
        return fast_copy(teacher).requires_grad_(False)

    def descend(
        self, images: Tensor, network: nn.Module, batch: Batch, loss: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Images (B, C, H, W) whose `loss` is low, begun at `images`.

        Args:
            images: (B, C, H, W), normalised, on the CPU.
            network: whose device they are made on.
            batch: that is made.
            loss: of what the network is to see, the images or a crop of each.
        """
        pixels = images.to(device_of(network)).requires_grad_()
        optimizer = torch.optim.Adam([pixels], lr=self.learning_rate)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.1, patience=self.patience, min_lr=self.min_learning_rate
        )
        for _ in batch.iterations(self.iterations):
            value = loss(self._seen(pixels, batch.generator))
            (pixels.grad,) = torch.autograd.grad(value, [pixels])
            optimizer.step()
            plateau.step(value.item())
            batch.step(1)
        return pixels.detach()

    def _seen(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """What the network sees in one step: all images whole, or a crop of each."""
        if torch.rand((), generator=generator) < self.crop_probability:
            boxes = crop_boxes(len(pixels), self.crop_scale, generator)
            mirrored = torch.rand(len(pixels), generator=generator) < 0.5
            pixels = cropped(pixels, boxes, mirrored)
        return pixels.contiguous(memory_format=torch.channels_last)
