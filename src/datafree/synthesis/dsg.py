"""Diverse Sample Generation, post-training (algorithms A.2; Qin et al., arXiv:2109.00212)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from datafree.config import InputSpec
from datafree.graph.alignment import Alignment, Granularity, margins
from datafree.graph.taps import batch_norms
from datafree.losses import enhancement_weights
from datafree.synthesis._images import ImageOptimizer
from datafree.synthesis.base import Batch
from datafree.tensors import fast_copy


@dataclass(frozen=True)
class _State:
    network: nn.Module
    delta: Tensor
    gamma: Tensor


class DSG(ImageOptimizer):
    """Match every image's own statistics to the stored ones up to a margin, one layer doubly.

    Slack distribution alignment and layerwise sample enhancement, Eqs. (5)-(8) and (10):
    ``min_x 1/B sum_n sum_l w_ln (|max(|mean_ln - mu_l| - delta_l, 0)|^2 + |max(|std_ln - sigma_l| -
    gamma_l, 0)|^2)`` and ZeroQ's loss of the input. The margins ``delta_l`` and ``gamma_l`` are
    quantiles of the gaps that Gaussian images leave (Eq. 6); ``w_ln`` is 2 for layer
    ``l = n mod N`` of sample n of the set, else 1. With ``epsilon=0`` and ``enhancement=False`` it
    is ZeroQ.
    """

    citation: ClassVar[str] = (
        "Zhang et al. (2021), Diversifying Sample Generation for Accurate Data-Free Quantization,"
        " CVPR; extended: Qin et al. (2021), arXiv:2109.00212"
    )
    settled_steps: ClassVar[int] = 128

    epsilon: float = Field(default=0.9, ge=0, le=1)
    """Quantile of the gaps taken as margin; 0 means no slack."""
    margin_images: int = Field(default=1024, ge=2)
    """Gaussian images the margins are measured on."""
    margin_granularity: Granularity = "sample"
    """What the quantile is taken over: `sample`, all images and channels, in the unit of the
    per-sample loss; `batch`, the channels of statistics of the whole set of images."""
    enhancement: bool = True
    """Weigh one layer's loss double for every sample (layerwise sample enhancement)."""
    batch_size: int | None = Field(default=32, ge=1)
    """Images optimised together, at most; None makes batches of N, the number of batch-norm layers,
    as the paper does. The losses are per sample and sample n of the whole set has layer
    ``n mod N``, so the size only decides which images share a learning rate."""

    def batch_images(self, teacher: nn.Module, count: int) -> int:
        """`batch_size` or N, or fewer where fewer are wanted."""
        return min(self.batch_size or len(batch_norms(teacher)), count)

    def prepare(self, teacher: nn.Module, spec: InputSpec, generator: torch.Generator) -> _State:
        """Measure the margins."""
        network = fast_copy(teacher)
        count = self.margin_images if self.epsilon else 2  # without slack any images will do
        noise = torch.randn(count, *spec.shape, generator=generator)
        delta, gamma = margins(network, noise, self.epsilon, self.margin_granularity)
        return _State(network, delta, gamma)

    def alignment(self, layers: int, batch: Batch, state: Any) -> Alignment:
        """The margins, and weights that go on where the batch before stopped."""
        weights = (
            enhancement_weights(layers, batch.size, batch.start)
            if self.enhancement
            else torch.ones(1, 1)
        )
        return Alignment(state.delta, state.gamma, weights)
