"""GDFQ: a conditional generator and the quantized network learn together (A.4, C.1)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from datafree.config import InputSpec
from datafree.generators import GeneratorConfig
from datafree.graph.taps import BatchNorm
from datafree.losses import distillation, first_logits, variance_distance
from datafree.training.base import Dream, Trainer

_LARGE = 64  # pixels a side; ImageNet generators take the class in their batch norms


class GDFQ(Trainer):
    """Fine-tune on images of all classes from a generator that learns beside the student.

    The generator is asked for images of random classes y that look familiar to the teacher M,

        L_G = CE(M(x), y)
              + statistics_weight * 1/N sum_l (MSE(mean_l, mu_l) + MSE(var_l, sigma_l^2))

    and the student Q learns from the same images

        L_Q = CE(Q(x), y) + distillation_weight * T^2 KL(softmax(M(x) / T) || softmax(Q(x) / T)).

    An epoch of the released code is 200 steps: 4 of warm-up and 396 more. Weight ranges follow the
    weights' extremes at every step and clipped values pass gradients; activation ranges are set
    after the warm-up and stay. For ImageNet the code has batches of 16, a warm-up of 50 epochs and
    `student_lr` 1e-6. Without batch norms their term is left out.
    """

    citation: ClassVar[str] = (
        "Xu et al. (2020), Generative Low-bitwidth Data Free Quantization, ECCV, arXiv:2003.03603"
    )

    warmup: int = Field(default=800, ge=0)
    iterations: int = Field(default=79_200, ge=1)
    batch_size: int = Field(default=200, ge=2)
    statistics_weight: float = Field(default=0.1, ge=0)
    """Weight of the distance of batch-norm statistics in the generator's loss."""
    distillation_weight: float = Field(default=1.0, ge=0)
    """Weight of the divergence from the teacher's answers in the student's loss."""
    temperature: float = Field(default=20.0, gt=0)
    """Temperature T that logits are divided by in the divergence."""
    reduction: Literal["batch", "element"] = "batch"
    """How the divergence is averaged: `batch`, over images only, as it is written; `element`, over
    classes too, which the released code does by accident of a default: labels then outweigh the
    teacher's answers."""
    condition: Literal["auto", "embedding", "batch_norm"] = "auto"
    """How the generator knows the class: `embedding`, by a learned vector that multiplies the
    latent one (CIFAR); `batch_norm`, by scales and shifts of its batch norms (ImageNet); `auto`,
    `batch_norm` for images of more than 64 pixels a side, else `embedding`."""

    def generator_config(self, spec: InputSpec) -> GeneratorConfig:
        """A generator that takes a class, where the network tells classes of images."""
        large = max(spec.shape[1:]) > _LARGE
        automatic = "batch_norm" if large else "embedding"
        wanted = automatic if self.condition == "auto" else self.condition
        return GeneratorConfig(
            shape=spec.shape, classes=spec.answers, latent=self.latent, body=self.body,
            width=self.width, condition=wanted if spec.labelled else "none",
        )  # fmt: skip

    def generator_terms(
        self, dream: Dream, student: nn.Module | None, memory: Any
    ) -> dict[str, Tensor]:
        """Classes and batch-norm statistics."""
        del student, memory
        rows = [variance_distance(features, *running(layer)) for layer, features in dream.features]
        terms = asked(dream, dream.logits)
        if rows:
            terms["statistics"] = self.statistics_weight * torch.stack(rows).mean()
        return terms

    def student_terms(self, logits: Tensor, dream: Dream) -> dict[str, Tensor]:
        """Classes and the teacher's softened answers."""
        divergence = distillation(
            logits, dream.logits, self.temperature, self.reduction, dream.heads
        )
        return {**asked(dream, logits), "distillation": self.distillation_weight * divergence}


def asked(dream: Dream, logits: Tensor) -> dict[str, Tensor]:
    """Cross-entropy of `logits` and the classes asked for; nothing where none can be.

    Raises:
        ConfigError: the network returns logits, and the generator takes no classes.
    """
    if dream.labels is None and dream.heads:
        return {}
    return {"classes": F.cross_entropy(first_logits(logits, dream.heads), dream.asked)}


def running(layer: BatchNorm) -> tuple[Tensor, Tensor]:
    """Running mean and variance of a batch norm, each (C,)."""
    mean, variance = layer.running_mean, layer.running_var
    assert mean is not None and variance is not None  # noqa: S101 - lifting builds no other kind
    return mean, variance
