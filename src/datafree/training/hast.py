"""HAST's fine-tuning: harder samples, and features that agree (algorithms-2, 2.2 and 2.3)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, fx, nn

from datafree.config import InputSpec
from datafree.training._features import (
    Maps,
    Watched,
    attention_distance,
    block_places,
    observed,
)
from datafree.training.base import Dream, Fraction
from datafree.training.fixed_set import FixedSet


class HAST(FixedSet):
    """Fine-tune on a fixed set whose images are made harder, under the teacher's features too.

        L(x) = 20 T^2 KL(softmax(M(x) / T) || softmax(Q(x) / T))
               + feature_weight * sum_b mean (a_b(M(x)) - a_b(Q(x)))^2

    Of every block b, ``a_b`` is the vector of mean squares of its channels, of length 1, taken
    behind its last convolution, before anything is added. Every step learns ``L(x) + L(x')`` with
    ``x' = x + perturbation * sign(grad_x L(x))``, a step away from what the student knows; the
    teacher answers for x' anew. There are no labels. The images that belong to it are those of the
    image method `hast`: ``--method hast --training hast``.

    At CIFAR-100 the released code has these defaults, over 151 epochs of 200 steps as `intraq`; on
    ImageNet a `feature_weight` of 4000, a `perturbation` of 0.01, rate 1e-6 and 4 images a
    process. Where a network has no residual blocks, all convolutions are compared.
    """

    citation: ClassVar[str] = (
        "Li et al. (2023), Hard Sample Matters a Lot in Zero-Shot Quantization, CVPR,"
        " arXiv:2303.13826"
    )

    iterations: int = Field(default=29_400, ge=1)
    student_lr: float = Field(default=1e-5, gt=0)
    milestones: tuple[Fraction, ...] = (0.109, 0.245, 0.381)
    feature_weight: float = Field(default=2000.0, ge=0)
    """Weight of the features' distance; 0 leaves it out."""
    perturbation: float = Field(default=0.02, ge=0)
    """How far every pixel moves to make images harder, in normalised pixels; 0 leaves it out."""

    def passes_together(self) -> float:
        """Both networks there and back to the pixels, and both again."""
        return 4.0 if self.perturbation else 2.5

    def remember(self, teacher: nn.Module, spec: InputSpec, random: torch.Generator) -> Any:
        """The places that are compared."""
        del spec, random
        assert isinstance(teacher, fx.GraphModule)  # noqa: S101 - a task has no other
        return Watched(teacher, block_places(teacher) if self.feature_weight else ())

    def student_losses(self, student: nn.Module, dream: Dream, memory: Any) -> dict[str, Tensor]:
        """Both terms for the images, and for harder ones."""
        images = dream.images.clone().requires_grad_()
        maps = observed(memory, student, images, dream)
        terms = self.terms(maps)
        if not self.perturbation:
            return terms | self.terms_of_images(maps)
        loss = torch.stack(list(terms.values())).sum()
        (gradient,) = torch.autograd.grad(loss, [images], retain_graph=True)
        harder = (images + self.perturbation * gradient.sign()).detach()
        again = self.terms(observed(memory, student, harder, dream))
        hard = {f"{name} of harder images": value for name, value in again.items()}
        return terms | hard | self.terms_of_images(maps)

    def terms(self, maps: Maps) -> dict[str, Tensor]:
        """Weighted terms of images as they are, and of harder ones.

        Args:
            maps: what both networks make of them.
        """
        terms = self.student_terms(maps.logits, maps.dream)
        if self.feature_weight:
            rows = [attention_distance(*pair) for pair in maps.features]
            terms["features"] = self.feature_weight * torch.stack(rows).sum()
        return terms

    def terms_of_images(self, maps: Maps) -> dict[str, Tensor]:
        """Further weighted terms, of images as they are alone."""
        del maps
        return {}
