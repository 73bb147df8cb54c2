"""HAST's images: of a class, and hard for the network (algorithms-2, 2.2)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from datafree.config import InputSpec
from datafree.errors import ModelError
from datafree.graph.taps import tap_batch_norms
from datafree.losses import first_logits, variance_distance
from datafree.synthesis._images import balanced_targets
from datafree.synthesis.base import Batch, Synthesizer, even_batches
from datafree.synthesis.intraq import crop_boxes, cropped
from datafree.tensors import device_of, fast_copy


class HAST(Synthesizer):
    """Match batch statistics with images of a class, where those that are hard count most.

    Pixels are the parameters. Every image has a class y, all classes equally often, and

        L = 1/N sum_l (MSE(mean_l, mu_l) + MSE(var_l, sigma_l^2))
            + label_weight mean_n (1 - p_n)^focus CE_n

    over the N batch norms, with the mean and variance of the whole batch; p_n is the probability
    that the network gives the class of image n. Easy images, with p_n near 1, hardly count, so that
    the set keeps some the network is unsure of. Gradients go through the factor too.

    The released values of (label_weight, focus) are (10, 2) for CIFAR-100, which are the defaults,
    and (0.1, 0.5) for ImageNet; there alone images are cropped to 40 % or more of their area and
    mirrored in half the steps (`crop_probability` 0.5). The set is shared out evenly into batches
    of at most `batch_size`; at 224 x 224 pixels, lower that before anything else.
    """

    citation: ClassVar[str] = (
        "Li et al. (2023), Hard Sample Matters a Lot in Zero-Shot Quantization, CVPR,"
        " arXiv:2303.13826"
    )
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
    label_weight: float = Field(default=10.0, ge=0)
    """Weight of the cross-entropy; 0 leaves it out."""
    focus: float = Field(default=2.0, ge=0)
    """Exponent of ``1 - p``: how much less easy images count; 0 counts all alike."""
    crop_probability: float = Field(default=0.0, ge=0, le=1)
    """Probability of a step to see crops of the images instead of the whole ones."""
    crop_scale: float = Field(default=0.4, gt=0, le=1)
    """Smallest area of a crop, as a share of the image's."""

    @property
    def batch_iterations(self) -> int:
        """Steps of Adam."""
        return self.iterations

    def batch_images(self, teacher: nn.Module, count: int) -> int:
        """Size of the fewest batches of at most `batch_size` images that are about equal."""
        del teacher
        return even_batches(count, self.batch_size)

    def prepare(self, teacher: nn.Module, spec: InputSpec, generator: torch.Generator) -> Any:
        """A copy of the teacher in the memory layout in which convolutions are fastest."""
        del generator
        if not spec.labelled:
            raise ModelError(
                f"{self.name} asks images to be of a class, and this network tells none"
                f" ({spec.task}); use the method zeroq or genie, which do without"
            )
        return fast_copy(teacher).requires_grad_(False)

    def make_batch(
        self, teacher: nn.Module, spec: InputSpec, batch: Batch, state: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Optimise one batch from Gaussian noise; see the base class."""
        network: nn.Module = state
        device = device_of(network)
        images = torch.randn(batch.size, *spec.shape, generator=batch.generator)
        targets = balanced_targets(batch, spec.answers)
        classes = targets.to(device)
        pixels = images.to(device).requires_grad_()
        optimizer = torch.optim.Adam([pixels], lr=self.learning_rate)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.1, patience=self.patience, min_lr=self.min_learning_rate
        )
        with tap_batch_norms(network) as taps:
            for _ in batch.iterations(self.iterations):
                logits = first_logits(network(self._seen(pixels, batch.generator)), spec.outputs)
                rows = [variance_distance(inputs, *_running(layer)) for layer, inputs in taps]
                loss = torch.stack(rows).mean()
                if self.label_weight:
                    loss = loss + self.label_weight * focal_loss(logits, classes, self.focus)
                (pixels.grad,) = torch.autograd.grad(loss, [pixels])
                optimizer.step()
                plateau.step(loss.item())
                batch.step(1)
        return pixels.detach(), targets

    def _seen(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """What the network sees in one step: all images whole, or a crop of each."""
        if torch.rand((), generator=generator) < self.crop_probability:
            boxes = crop_boxes(len(pixels), self.crop_scale, generator)
            mirrored = torch.rand(len(pixels), generator=generator) < 0.5
            pixels = cropped(pixels, boxes, mirrored)
        return pixels.contiguous(memory_format=torch.channels_last)


def focal_loss(logits: Tensor, targets: Tensor, focus: float) -> Tensor:
    """``mean (1 - p)^focus CE`` with p the softmax entry of every image's class.

    Args:
        logits: (B, K).
        targets: (B,) classes.
        focus: exponent; 0 is the cross-entropy.

    Returns:
        Scalar. Where p is 1 in float32 the gradient of an exponent below 1 would be infinite;
        ``1 - p`` is at least 1e-6 there.
    """
    losses = F.cross_entropy(logits, targets, reduction="none")
    # 1 - exp(-CE) without the rounding of p near 1.
    missed = -torch.expm1(-losses)
    return (missed.clamp(min=1e-6) ** focus * losses).mean()


def _running(layer: Any) -> tuple[Tensor, Tensor]:
    return layer.running_mean, layer.running_var
