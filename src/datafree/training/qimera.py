"""Qimera: images between classes, from superposed conditions of the generator (A.8, 2.1)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from datafree.generators import Generator
from datafree.training.gdfq import GDFQ


class Qimera(GDFQ):
    """Fine-tune as `gdfq` does, on images of which some lie between several classes.

    In a share `mixing` of the batches every image is asked to be of `mixed` classes at once:
    classes y_k drawn at random, and shares ``w = softmax(z)`` with ``z ~ N(0, I)``. What the
    generator has learned of each class is superposed by these shares, ``sum_k w_k E(y_k)``, and so
    is the target of both cross-entropies, ``sum_k w_k 1[y_k]``: boundaries of the teacher's classes
    are what the student learns there. All else is `gdfq`; a class drawn twice has both shares.

    The released code adds latent vectors to embeddings and normalises before they are superposed,
    and can start embeddings from the classifier's weights; here embeddings multiply one latent
    vector, as in `gdfq`, and start at random. Its divergence is averaged over classes too
    (`reduction` `element`). Its (`mixing`, `mixed`) are (0.4, 2) for CIFAR-10, the defaults, (0.4,
    10) for CIFAR-100, and (0.4, 500) for ResNet-18 on ImageNet.
    """

    citation: ClassVar[str] = (
        "Choi et al. (2021), Qimera: Data-free Quantization with Synthetic Boundary Supporting"
        " Samples, NeurIPS, arXiv:2111.02625"
    )

    mixing: float = Field(default=0.4, ge=0, le=1)
    """Probability of a step to ask for images between classes."""
    mixed: int = Field(default=2, ge=1)
    """Classes that such an image lies between."""

    def ask(
        self, generator: Generator, count: int, random: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """Latent vectors, and classes or shares of classes."""
        latents, labels = generator.draw(count, random)
        if labels is None or torch.rand((), generator=random) >= self.mixing:
            return latents, labels
        shares = superposed(count, self.mixed, generator.config.classes, random)
        return latents, shares.to(latents)


def superposed(count: int, mixed: int, classes: int, random: torch.Generator) -> Tensor:
    """(count, classes) shares of classes for every image: `mixed` of them, at most, are not 0.

    Args:
        count: images.
        mixed: classes drawn for each, with replacement.
        classes: there are.
        random: source of the random numbers, on the CPU.
    """
    drawn = torch.randint(classes, (count, mixed), generator=random)
    weights = torch.randn(count, mixed, generator=random).softmax(1)
    return torch.zeros(count, classes).scatter_add_(1, drawn, weights)
