"""PSAQ-ViT: images whose patches a transformer tells apart (algorithms A.8; Li, ECCV 2022)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, fx, nn

from datafree.config import InputSpec
from datafree.graph.attention import attending
from datafree.losses import (
    class_logits,
    differential_entropy,
    patch_similarity,
    total_variation,
)
from datafree.synthesis._attention import AttentionMethod, by_image, prefix_tokens
from datafree.synthesis._images import balanced_targets
from datafree.synthesis._pixels import Stage
from datafree.synthesis.base import Batch
from datafree.tensors import fast_copy


class PSAQ(AttentionMethod):
    """Make the patches of an image as unlike as those of a photograph are to a transformer.

    ``min_x - sum_l H(S_l(x)) + label_weight CE(x, y) + tv_weight |TV(x) - c|``: for the output
    ``A V`` of every attention l, averaged over its heads, ``S_l`` are the cosine similarities of
    all pairs of patches of one image, and H is the differential entropy of their density, by
    normal kernels at ten places between the least and the greatest. On noise all patches are
    alike; on photographs foreground and background differ. No statistics are needed.

    Tokens that stand for no patch, such as the class token, are left out; a network that has none
    keeps all (the released code drops the first patch of Swin). Where attention stays within
    windows, similarities are those within one window. c is drawn once for a batch; the paper's 2500
    to 3000 belong to 32 images of 3 x 224 x 224 and are given here for a single pair of pixels.
    """

    citation: ClassVar[str] = (
        "Li et al. (2022), Patch Similarity Aware Data-Free Quantization for Vision Transformers,"
        " ECCV, arXiv:2203.02250"
    )

    iterations: int = Field(default=500, ge=1)
    """Steps of Adam in each of two stages."""
    shift: float = Field(default=15 / 224, ge=0, le=0.5)
    """Share of a side that images are rolled by at most, anew in every step; twice as far in the
    second stage."""
    bandwidth: float = Field(default=0.01, gt=0)
    """Width of the kernels, in units of the cosine."""
    points: int = Field(default=10, ge=2)
    """Places at which a density is taken."""
    entropy_weight: float = Field(default=1.0, ge=0)
    """Weight of the entropies."""
    lowest_variation: float = Field(default=0.285, ge=0)
    """Least c: root mean square difference of neighbouring pixels, in deviations of ImageNet's."""
    highest_variation: float = Field(default=0.342, ge=0)
    """Greatest c, likewise."""

    def stages(self) -> tuple[Stage, ...]:
        """Two of the same length."""
        return tuple(Stage(self.iterations, reach * self.shift) for reach in (1, 2))

    def prepare(self, teacher: nn.Module, spec: InputSpec, generator: torch.Generator) -> Any:
        """A copy of the teacher that shows what its attentions return."""
        del spec, generator
        assert isinstance(teacher, fx.GraphModule)  # noqa: S101 - `check` refuses others
        return attending(fast_copy(teacher).requires_grad_(False), "outputs")

    def make_batch(
        self, teacher: nn.Module, spec: InputSpec, batch: Batch, state: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Optimise one batch from Gaussian noise; see the base class."""
        pixels = torch.randn(batch.size, *spec.shape, generator=batch.generator)
        targets = balanced_targets(batch, spec.answers)
        lot = float(torch.rand((), generator=batch.generator))
        drawn = self.lowest_variation + lot * (self.highest_variation - self.lowest_variation)
        wanted = drawn * 4 * math.sqrt(pixels.numel())

        def loss(images: Tensor, part: slice) -> Tensor:
            logits, outputs = state(images)
            entropies = [self._entropy(values, spec, len(images)) for values in outputs]
            labels = targets[part].to(logits.device)
            classes = F.cross_entropy(class_logits(logits), labels)
            return self.label_weight * classes - self.entropy_weight * torch.stack(entropies).sum()

        def prior(pixels: Tensor) -> Tensor:
            return self.tv_weight * (total_variation(pixels) - wanted).abs()

        return self.optimize(state, pixels, loss, prior, spec, batch), targets

    def _entropy(self, values: Tensor, spec: InputSpec, count: int) -> Tensor:
        """Mean over images (and windows) of the entropy of one attention's similarities."""
        tokens = by_image(values, count).mean(1)
        windows = len(tokens) > count
        first = prefix_tokens(tokens.shape[1], spec.shape, windows=windows)
        similarities = patch_similarity(tokens[:, first:]).flatten(1)
        return differential_entropy(similarities, self.bandwidth, self.points).mean()
