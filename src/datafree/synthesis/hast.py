"""HAST's images: of a class, and hard for the network (algorithms-2, 2.2)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from datafree.config import InputSpec
from datafree.graph.taps import tap_batch_norms
from datafree.losses import first_logits, variance_distance
from datafree.synthesis._classes import ClassImages
from datafree.synthesis._images import balanced_targets
from datafree.synthesis.base import Batch
from datafree.tensors import device_of


class HAST(ClassImages):
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
    label_weight: float = Field(default=10.0, ge=0)
    """Weight of the cross-entropy; 0 leaves it out."""
    focus: float = Field(default=2.0, ge=0)
    """Exponent of ``1 - p``: how much less easy images count; 0 counts all alike."""
    crop_probability: float = Field(default=0.0, ge=0, le=1)
    crop_scale: float = Field(default=0.4, gt=0, le=1)

    def prepare(self, teacher: nn.Module, spec: InputSpec, generator: torch.Generator) -> Any:
        """A copy of the teacher, see `ClassImages.frozen`."""
        del generator
        return self.frozen(teacher, spec)

    def make_batch(
        self, teacher: nn.Module, spec: InputSpec, batch: Batch, state: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Optimise one batch from Gaussian noise; see the base class."""
        network: nn.Module = state
        images = torch.randn(batch.size, *spec.shape, generator=batch.generator)
        targets = balanced_targets(batch, spec.answers)
        classes = targets.to(device_of(network))
        with tap_batch_norms(network) as taps:

            def loss(seen: Tensor) -> Tensor:
                logits = first_logits(network(seen), spec.outputs)
                rows = [variance_distance(inputs, *_running(layer)) for layer, inputs in taps]
                total = torch.stack(rows).mean()
                if self.label_weight:
                    total = total + self.label_weight * focal_loss(logits, classes, self.focus)
                return total

            return self.descend(images, network, batch, loss), targets


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
