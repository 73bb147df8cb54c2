"""DSG for fine-tuning: GDFQ with slack, enhancement and correlation inhibition (A.3, A.4.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, fx, nn

from datafree.config import InputSpec
from datafree.graph.alignment import (
    Alignment,
    Granularity,
    alignment_loss,
    as_one_sample,
    margins,
)
from datafree.graph.normalisation import as_taken
from datafree.graph.taps import batch_norms, stored_statistics
from datafree.losses import correlation_inhibition, enhancement_weights, variance_distance
from datafree.training.base import Dream, Fraction
from datafree.training.gdfq import GDFQ, asked, running


@dataclass(frozen=True)
class _Margins:
    delta: Tensor
    gamma: Tensor


class DSGQAT(GDFQ):
    """Fine-tune as `gdfq` does, on images of a generator that is kept from making them alike.

    Diverse sample generation, Algorithm 2. The generator's loss, Eq. (11), with DSG's slack
    alignment per sample (see `dsg`), sample n weighing layer ``n mod N`` double, and the
    correlation of samples inhibited in every block of the generator:

        L_G = alpha * alignment + beta * sum_b SCI_b + CE(M(x), y).

    Margins are quantiles of the gaps Gaussian *images* leave; the paper's text passes the latent
    vectors, whose shape is not an image's. The student learns as in `gdfq`.

    With `statistics` `gdfq` the first term is GDFQ's own, to which each part is added as in the
    rows "GDFQ + part" of the paper's Table 1:

    ``statistics_weight * 1/N sum_l w_l 1/C_l (|max(|mean_l - mu_l| - delta_l, 0)|^2 + |max(|var_l -
    sigma_l^2| - gamma_l, 0)|^2)``

    over the batch, with w_l 2 for layer ``t mod N`` in step t, else 1. With ``epsilon=0``,
    ``enhancement=False`` and ``beta=0`` that is `gdfq`.

    With `granularity` `batch`, statistics are those of the whole batch, as in GDFQ and in DSG's
    code, and what is enhanced is layer ``t mod N`` in step t. Without batch norms there is nothing
    to align with, and that term is left out.
    """

    citation: ClassVar[str] = (
        "Qin et al. (2021), Diverse Sample Generation: Pushing the Limit of Data-free Quantization,"
        " arXiv:2109.00212"
    )
    sees_blocks: ClassVar[bool] = True

    iterations: int = Field(default=40_000, ge=1)
    milestones: tuple[Fraction, ...] = (0.5,)
    nesterov: bool = False
    statistics: Literal["dsg", "gdfq"] = "dsg"
    """How statistics are compared: `dsg`, by Eq. (11), weighted by `alpha`; `gdfq`, as GDFQ does,
    variances of the whole batch averaged over layers, weighted by `statistics_weight`, with the
    same slack and enhancement."""
    alpha: float = Field(default=0.1, ge=0)
    """Weight of the alignment of statistics by `dsg`."""
    beta: float = Field(default=100.0, ge=0)
    """Weight of the correlation term; 0 leaves it out."""
    epsilon: float = Field(default=0.9, ge=0, le=1)
    """Quantile of the gaps taken as margin; 0 means no slack."""
    granularity: Granularity = "sample"
    """What has statistics and margins of its own: `sample`, every image; `batch`, all images of a
    batch together."""
    enhancement: bool = True
    """Weigh one layer's loss double for every sample (layerwise sample enhancement)."""
    correlation: Literal["eigvals", "eigvecs_detached", "full"] = "eigvals"
    """What of the samples' similarity is compared with that of random vectors: `eigvals`, its
    eigenvalues; `eigvecs_detached`, its eigenvectors too, without gradient through them; `full`,
    both with all gradients. See `datafree.losses.correlation_inhibition`."""
    margin_images: int = Field(default=1024, ge=2)
    """Gaussian images the margins are measured on."""

    def remember(self, teacher: nn.Module, spec: InputSpec, random: torch.Generator) -> Any:
        """The margins, Eq. (6); None without batch norms."""
        if not batch_norms(teacher):
            return None
        count = self.margin_images if self.epsilon else 2  # without slack any images will do
        noise = torch.randn(count, *spec.shape, generator=random)
        if isinstance(teacher, fx.GraphModule):
            noise = as_taken(teacher, spec)(noise)
        if self.statistics == "gdfq":
            return _Margins(*margins(teacher, noise, self.epsilon, "batch", "variance"))
        return _Margins(*margins(teacher, noise, self.epsilon, self.granularity))

    def generator_terms(
        self, dream: Dream, student: nn.Module | None, memory: Any
    ) -> dict[str, Tensor]:
        """Classes, slack alignment, correlation."""
        del student
        terms = asked(dream, dream.logits)
        if memory is not None and self.statistics == "gdfq":
            terms["statistics"] = self.statistics_weight * self._as_gdfq(dream, memory)
        elif memory is not None:
            terms["alignment"] = self.alpha * self._alignment(dream, memory)
        if self.beta:
            terms["correlation"] = self.beta * self._correlation(dream)
        return terms

    def _as_gdfq(self, dream: Dream, memory: Any) -> Tensor:
        layers = len(dream.features)
        enhanced = dream.start // self.batch_size % layers if self.enhancement else layers
        rows: list[Tensor] = []
        for index, (layer, features) in enumerate(dream.features):
            slack = (memory.delta[index], memory.gamma[index]) if self.epsilon else None
            row = variance_distance(features, *running(layer), slack)
            rows.append(2 * row if index == enhanced else row)
        return torch.stack(rows).mean()

    def _alignment(self, dream: Dream, memory: Any) -> Tensor:
        features = [features for _, features in dream.features]
        first = dream.start
        if self.granularity == "batch":
            features = [as_one_sample(feature) for feature in features]
            first //= self.batch_size
        layers = len(features)
        weights = (
            enhancement_weights(layers, len(features[0]), first % layers)
            if self.enhancement
            else torch.ones(1, 1)
        )
        stored = [stored_statistics(layer) for layer, _ in dream.features]
        return alignment_loss(features, stored, Alignment(memory.delta, memory.gamma, weights))

    def _correlation(self, dream: Dream) -> Tensor:
        rows: list[Tensor] = []
        # Drawn where it is needed: for all blocks it is a hundred times the latent vectors.
        random = torch.Generator(dream.images.device)
        random.manual_seed(dream.random.initial_seed() + 1)  # not the latent vectors once more
        for block in dream.blocks:
            noise = torch.randn(block.shape, generator=random, device=block.device)
            rows.append(correlation_inhibition(block, noise, self.correlation))
        return torch.stack(rows).sum()
