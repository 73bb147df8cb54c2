"""AdaDFQ: samples neither beyond the student nor beneath it (algorithms-2, 2.1)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from datafree.config import InputSpec
from datafree.errors import ModelError
from datafree.losses import disagreement, first_logits, variance_distance
from datafree.training.base import Dream, Fraction, Trainer
from datafree.training.gdfq import running

_LEAST_SPREAD = 1e-6  # nats between the least entropy of a batch and an even distribution


class AdaDFQ(Trainer):
    """Fine-tune on images on which teacher and student differ neither too much nor too little.

    With logits t of the teacher and s of the student, the generator learns

        L_G = L_h + beta (disagreement_weight CE(t - s, y) + agreement_weight CE(t + s, y))
              + gamma 1/N sum_l (MSE(mean_l, mu_l) + MSE(var_l, sigma_l^2))

    where ``L_h = mean max(lower - h, 0) + mean max(h - upper, 0)`` keeps the entropy h of
    ``softmax(t - s)`` in a band, scaled so that 0 is the least of the batch and 1 an even
    distribution. h is 0 for all where no image differs. The student learns from the same images to
    make the differences even,

        L_Q = T^2 (log K - H(softmax((t - s) / T))),

    and no labels. For a large T that is half the variance of ``t - s`` over the classes. While
    there is no student, in the warm-up, the generator learns as if s were t.

    The released code takes T = 20 for CIFAR, T = 5, `student_lr` 1e-5 and batches of 16 for
    ImageNet, where one image in 16 is always at 0.
    """

    citation: ClassVar[str] = (
        "Qian et al. (2023), Adaptive Data-Free Quantization, CVPR, arXiv:2303.06869"
    )

    warmup: int = Field(default=800, ge=0)
    iterations: int = Field(default=79_200, ge=1)
    batch_size: int = Field(default=200, ge=2)
    milestones: tuple[Fraction, ...] = (0.25, 0.5, 0.75)
    lower: float = Field(default=0.1, ge=0, le=1)
    """Lower end of the band that the scaled entropy of differences is kept in."""
    upper: float = Field(default=0.8, ge=0, le=1)
    """Upper end of that band."""
    beta: float = Field(default=1.0, ge=0)
    """Weight of both cross-entropies together; 0 leaves them out."""
    disagreement_weight: float = Field(default=0.2, ge=0)
    """Weight of the cross-entropy of ``t - s``: images whose class the student misses."""
    agreement_weight: float = Field(default=0.1, ge=0)
    """Weight of the cross-entropy of ``t + s``: images whose class both see."""
    gamma: float = Field(default=1.0, ge=0)
    """Weight of the distance of batch-norm statistics."""
    temperature: float = Field(default=20.0, gt=0)
    """Temperature T that differences of logits are divided by in the student's loss."""

    def passes_together(self) -> float:
        """The generator's loss asks the student too."""
        return 2.0 + super().passes_together()

    def remember(self, teacher: nn.Module, spec: InputSpec, random: torch.Generator) -> Any:
        """Nothing.

        Raises:
            ModelError: the network tells no classes.
        """
        del teacher, random
        if not spec.labelled:
            raise ModelError(
                f"{self.name} compares logits of classes, and this network returns none"
                f" ({spec.task}): use dfqf, which does without"
            )

    def generator_terms(
        self, dream: Dream, student: nn.Module | None, memory: Any
    ) -> dict[str, Tensor]:
        """Band, classes, batch-norm statistics."""
        del memory
        expected = dream.answers
        # Gradients go through the student to the images.
        own = expected if student is None else _answers(student, dream)
        terms: dict[str, Tensor] = {}
        if student is not None:
            terms["band"] = band_loss(expected - own, self.lower, self.upper)
        apart = self.beta * self.disagreement_weight * F.cross_entropy(expected - own, dream.asked)
        both = self.beta * self.agreement_weight * F.cross_entropy(expected + own, dream.asked)
        terms |= {"disagreement": apart, "agreement": both}
        rows = [variance_distance(features, *running(layer)) for layer, features in dream.features]
        if rows:
            terms["statistics"] = self.gamma * torch.stack(rows).mean()
        return terms

    def student_terms(self, logits: Tensor, dream: Dream) -> dict[str, Tensor]:
        """How uneven the differences of logits are."""
        own = first_logits(logits, dream.heads)
        return {"disagreement": disagreement(own, dream.answers, self.temperature).mean()}


def band_loss(differences: Tensor, lower: float, upper: float) -> Tensor:
    """How far scaled entropies lie outside a band: ``mean max(l - h, 0) + mean max(h - u, 0)``.

    ``h = (H - min H) / (log K - min H)`` of ``softmax(differences)``, the least over the batch.

    Args:
        differences: (B, K) of logits.
        lower: end of the band, 0 to 1.
        upper: likewise.

    Returns:
        Scalar.
    """
    logs = F.log_softmax(differences, 1)
    entropy = -(logs.exp() * logs).sum(1)
    least = entropy.min()
    # Where no image differs all entropies are log K, and nothing tells them apart.
    scaled = (entropy - least) / (math.log(differences.shape[1]) - least).clamp(min=_LEAST_SPREAD)
    return F.relu(lower - scaled).mean() + F.relu(scaled - upper).mean()


def _answers(student: nn.Module, dream: Dream) -> Tensor:
    return first_logits(student(dream.images).float(), dream.heads)
