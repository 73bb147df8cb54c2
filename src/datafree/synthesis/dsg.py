"""Diverse Sample Generation, post-training (algorithms A.2; Qin et al., arXiv:2109.00212)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from datafree.config import InputSpec
from datafree.graph.alignment import Alignment, Granularity, margins
from datafree.graph.taps import batch_norms
from datafree.graph.watched import WatchedNetwork, watched
from datafree.losses import enhancement_weights
from datafree.synthesis._images import ImageOptimizer
from datafree.synthesis.base import Batch
from datafree.tensors import fast_copy

_RELEASED: dict[str, Any] = {
    "label_weight": 2.0, "tv_weight": 0.01, "l2_weight": 0.01, "correlation_weight": 1.0,
    "learning_rate": 0.9, "patience": 260, "least_fall": 0.0, "start": "uniform",
    "batch_size": 40,
}  # fmt: skip
_TRIED = 32  # images the margins of a trial are measured on
_ENHANCED = 20  # layers of ResNet-18, and samples, that the released code enhances whatever it has


@dataclass(frozen=True)
class _State:
    network: WatchedNetwork
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

    ``compat=official`` is the released recipe, which the paper's tables were not made with: twice
    the cross-entropy to classes, total variation and norm of images, correlation inhibition of the
    images, a rate of 0.9, batches of 40 from a uniform start, and enhancement of the residual (4 on
    the loss) for the first 20 samples of a batch and layers alone. Its margins were not published
    and are measured as ever; its jitter, which only the total variation sees, is left out, and its
    correlation term is Eq. (9) instead of a form whose eigenvalues are in no order.
    """

    citation: ClassVar[str] = (
        "Zhang et al. (2021), Diversifying Sample Generation for Accurate Data-Free Quantization,"
        " CVPR; extended: Qin et al. (2021), arXiv:2109.00212"
    )
    settled_steps: ClassVar[int] = 128

    compat: Literal["paper", "official"] = "paper"
    """Whose recipe: `paper`, or `official`, the released code's, which sets what is not given; see
    the class."""
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
    as the paper does, and of 40 with ``compat=official``. The losses are per sample and sample n of
    the whole set has layer ``n mod N``, so the size only decides which images share a rate."""

    @model_validator(mode="before")
    @classmethod
    def _released(cls, values: Any) -> Any:
        """What the released recipe has lies under what is given."""
        if not isinstance(values, dict) or values.get("compat") != "official":
            return values
        given: dict[str, Any] = {**_RELEASED, **values}
        if given["batch_size"] is None:  # as `--protocol dsg` has it, which is the paper's
            given["batch_size"] = _RELEASED["batch_size"]
        return given

    def batch_images(self, teacher: nn.Module, count: int) -> int:
        """`batch_size` or N, or fewer where fewer are wanted."""
        return min(self.batch_size or len(batch_norms(teacher)), count)

    def for_trial(self) -> DSG:
        """With margins of a few images: those of all take longer than the steps that are timed."""
        return self.model_copy(update={"margin_images": min(self.margin_images, _TRIED)})

    def prepare(self, teacher: nn.Module, spec: InputSpec, generator: torch.Generator) -> _State:
        """Measure the margins."""
        network = fast_copy(teacher)
        count = self.margin_images if self.epsilon else 2  # without slack any images will do
        noise = torch.randn(count, *spec.shape, generator=generator)
        delta, gamma = margins(network, noise, self.epsilon, self.margin_granularity)
        return _State(watched(network), delta, gamma)

    def alignment(self, layers: int, batch: Batch, state: Any) -> Alignment:
        """The margins, and weights that go on where the batch before stopped."""
        weights = torch.ones(1, 1)
        if self.enhancement and self.compat == "official":
            weights = released_weights(layers, batch.size)
        elif self.enhancement:
            weights = enhancement_weights(layers, batch.size, batch.start)
        return Alignment(state.delta, state.gamma, weights)


def released_weights(layers: int, batch: int) -> Tensor:
    """Enhancement as released: (N, B) weights, 4 for layer n of sample n < 20 of a batch, else 1.

    Args:
        layers: N.
        batch: B.
    """
    weights = torch.ones(layers, batch)
    weights.diagonal()[:_ENHANCED] = 4
    return weights
