"""Statistics of features, distances of them from stored ones, enhancement."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

STATISTICS_EPS = 1e-6
"""Added to variances before the square root, as in ZeroQ's code (not the BN module's own eps)."""

VARIANCE_FLOOR = 1e-8
"""Least variance that `kl_distance` divides by or takes the logarithm of."""


class _Moments(torch.autograd.Function):
    """Mean and variance over some dimensions with one pass each way.

    `torch.var_mean` takes over ten times as long as this on CPU (Welford, not vectorised over
    strides), which would cost more than the convolutions around it.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance of `features` over `dims`, which are kept with size 1."""
        mean = features.mean(dims, keepdim=True)
        centred = features - mean
        mean_square = centred.square_().mean(dims, keepdim=True)
        count = features.numel() // mean.numel()
        # Not `centred`: features are kept by the layer behind anyway, and mean the same bits.
        ctx.save_for_backward(features, mean)
        ctx.count = count
        return mean, mean_square * (count / (count - 1))

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch calls it by position
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor, None]:
        """``d mean / d f = 1/n`` and ``d var / d f = 2 (f - mean) / (n - 1)``."""
        features, mean = ctx.saved_tensors
        grad_mean, grad_variance = grad_outputs
        slope = grad_variance * (2 / (ctx.count - 1))
        return torch.addcmul(grad_mean / ctx.count, features - mean, slope), None


def _moments(features: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    mean, variance = cast("tuple[Tensor, Tensor]", _Moments.apply(features, dims))
    return mean, variance


def sample_statistics(features: Tensor) -> tuple[Tensor, Tensor | None]:
    """Mean and standard deviation of every sample and channel by itself.

    ``std = sqrt(var + 1e-6)`` with the unbiased variance over positions.

    Args:
        features: (B, C, …) input of a batch-norm layer.

    Returns:
        Mean (B, C) and std (B, C); std is None where a channel has one value per sample (1x1 maps,
        inputs of `BatchNorm1d`), for which a deviation is undefined.
    """
    if features.ndim == 2 or features[0, 0].numel() == 1:
        return features.reshape(features.shape[0], features.shape[1]), None
    mean, variance = _moments(features, tuple(range(2, features.ndim)))
    shape = features.shape[:2]
    return mean.view(shape), torch.sqrt(variance.view(shape) + STATISTICS_EPS)


def batch_statistics(features: Tensor) -> tuple[Tensor, Tensor | None]:
    """Mean and standard deviation of every channel over batch and positions together.

    ``std = sqrt(var + 1e-6)`` with the unbiased variance. Not the average of `sample_statistics`:
    what differs between samples counts here.

    Args:
        features: (B, C, …) input of a batch-norm layer.

    Returns:
        Mean (C,) and std (C,); std is None where a channel has one value in all.
    """
    channels = features.shape[1]
    if features.numel() == channels:
        return features.reshape(channels), None
    mean, variance = _moments(features, (0, *range(2, features.ndim)))
    return mean.view(channels), torch.sqrt(variance.view(channels) + STATISTICS_EPS)


def batch_distance(features: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Distance of a batch's statistics from one layer's, averaged over channels (Genie, A.6.1).

    ``1/C (|mean(features) - mean|^2 + |std(features) - std|^2)``; a batch without deviation (see
    `batch_statistics`) is compared by its mean alone.

    Args:
        features: (B, C, …) input of the layer.
        mean: (C,) running mean.
        std: (C,) running standard deviation.

    Returns:
        Scalar.
    """
    batch_mean, batch_std = batch_statistics(features)
    distance = slack_distance(batch_mean, mean)
    if batch_std is not None:
        distance = distance + slack_distance(batch_std, std)
    return distance / len(mean)


def standardized_distance(features: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Distance of a batch's statistics from one layer's, in deviations of its channels.

    ``1/C sum_c ((mean_c(features) - mean_c) / std_c)^2 + (std_c(features) / std_c - 1)^2`` has no
    unit, so that layers, and networks, compare. A batch without deviation (see `batch_statistics`)
    is compared by its mean alone.

    Args:
        features: (B, C, …) input of the layer.
        mean: (C,) running mean.
        std: (C,) running standard deviation, positive.

    Returns:
        Scalar.
    """
    batch_mean, batch_std = batch_statistics(features)
    distance = ((batch_mean - mean) / std).square()
    if batch_std is not None:
        distance = distance + (batch_std / std - 1).square()
    return distance.mean()


def variance_distance(
    features: Tensor,
    mean: Tensor,
    variance: Tensor,
    margins: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Distance of a batch's mean and *variance* from one layer's (GDFQ, IntraQ; A.4, A.8).

    ``1/C (|mean(features) - mean|^2 + |var(features) - variance|^2)`` with the biased variance over
    batch and positions. A batch with one value per channel is compared by its mean alone. With
    `margins`, gaps count as far as they go beyond these, as in DSG Eq. (5).

    Args:
        features: (B, C, …) input of the layer.
        mean: (C,) running mean.
        variance: (C,) running variance.
        margins: slack of the means and of the variances, scalars; None has none.

    Returns:
        Scalar.
    """
    channels = features.shape[1]
    count = features.numel() // channels
    if count == 1:
        return _beyond(features.reshape(channels), mean, margins and margins[0])
    batch_mean, unbiased = _moments(features, (0, *range(2, features.ndim)))
    biased = unbiased.view(channels) * ((count - 1) / count)
    means = _beyond(batch_mean.view(channels), mean, margins and margins[0])
    return means + _beyond(biased, variance, margins and margins[1])


def _beyond(values: Tensor, targets: Tensor, margin: Tensor | None) -> Tensor:
    """Mean square of what the gaps go beyond `margin`."""
    if margin is None:
        return F.mse_loss(values, targets)
    return slack_distance(values, targets, margin) / len(targets)


def kl_distance(
    features: Tensor,
    mean: Tensor,
    variance: Tensor,
    weighting: Literal["paper", "kl"] = "paper",
) -> Tensor:
    """Divergence of a batch's statistics from one layer's, averaged over channels (DFQF).

    Of the normals ``N(m', v')`` of the batch, with the unbiased variance over batch and positions,
    and ``N(m, v)`` of the layer:

    * ``kl``, Eq. (6): ``KL(N(m', v') || N(m, v)) = (v'/v - 1 - log(v'/v) + (m' - m)^2 / v) / 2``,
      not negative.
    * ``paper``, Eq. (7): ``v' - v log v' + (m' - m)^2``, which is ``2 v KL`` plus the constant
      ``v - v log v``. It has its minimum at the same place, but that is not 0 and may be negative;
      channels of large variance weigh more.

    Both variances are at least 1e-8; a channel that never varied in training outweighs all others
    under ``kl``. A batch with one value per channel is compared by its mean alone: the last term of
    either.

    Args:
        features: (B, C, …) input of the layer.
        mean: (C,) running mean.
        variance: (C,) running variance.
        weighting: which of the two.

    Returns:
        Scalar.
    """
    channels = features.shape[1]
    target = variance.clamp(min=VARIANCE_FLOOR)
    if features.numel() == channels:
        gap = (features.reshape(channels) - mean).square()
        return (gap if weighting == "paper" else gap / target / 2).mean()
    batch_mean, unbiased = _moments(features, (0, *range(2, features.ndim)))
    gap = (batch_mean.view(channels) - mean).square()
    actual = unbiased.view(channels).clamp(min=VARIANCE_FLOOR)
    if weighting == "paper":
        return (actual - target * actual.log() + gap).mean()
    ratio = actual / target
    return (ratio - 1 - ratio.log() + gap / target).mean() / 2


def slack_distance(statistic: Tensor, target: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """Squared distance to a band around `target`, summed over channels (DSG Eq. 5).

    ``sum_c max(|statistic_c - target_c| - margin, 0)^2``: zero, with zero gradient, inside the
    band; with margin 0 the alignment loss of ZeroQ.

    Args:
        statistic: (…, C).
        target: (C,).
        margin: non-negative scalar.

    Returns:
        Tensor of shape (…).
    """
    return F.relu((statistic - target).abs() - margin).square().sum(-1)


def slack_margin(gaps: Tensor, epsilon: float) -> Tensor:
    """The `epsilon` quantile of all absolute gaps (DSG Eq. 6); 0 for epsilon 0 ("no slack").

    Args:
        gaps: absolute differences between statistics and their targets, any shape.
        epsilon: 0 to 1.

    Returns:
        Non-negative scalar.
    """
    if epsilon == 0 or gaps.numel() == 0:
        return torch.zeros((), dtype=gaps.dtype, device=gaps.device)
    # torch.quantile refuses more than 2**24 values; a sorted copy has no such limit.
    ordered = gaps.flatten().sort().values
    position = epsilon * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return torch.lerp(ordered[below], ordered[above], position - below)


def enhancement_weights(layers: int, batch: int, offset: int = 0) -> Tensor:
    """Sample enhancement (DSG Eqs. 7-8): sample n weighs layer ``(n + offset) mod N`` double.

    For a batch of N samples and no offset this is the matrix ``1 1^T + I``, whose columns sum to N
    + 1.

    Args:
        layers: N.
        batch: B, smaller or larger than N.
        offset: images made before this batch, so that several batches cover all layers.

    Returns:
        (N, B) weights, 1 or 2.
    """
    samples = torch.arange(batch)
    weights = torch.ones(layers, batch)
    weights[(samples + offset) % layers, samples] += 1
    return weights


def input_distance(images: Tensor) -> Tensor:
    """ZeroQ's layer 0: distance of every image's channel means and deviations from 0 and 1.

    Args:
        images: (B, C, H, W), normalised.

    Returns:
        (B,) per-sample losses.
    """
    mean, std = sample_statistics(images)
    loss = slack_distance(mean, torch.zeros_like(mean[0]))
    return loss if std is None else loss + slack_distance(std, torch.ones_like(std[0]))


def values_distance(values: Tensor) -> Tensor:
    """`input_distance` of an input that is no image: its features are standardised over items.

    Args:
        values: (B, C, …). Where a channel has one value in an item, its mean and deviation are
            those over the batch; of a batch of one item, those over its channels.

    Returns:
        (B,) losses, or (1,) where they are of the batch.
    """
    if values.ndim > 2 and values[0, 0].numel() > 1:
        return input_distance(values)
    rows = values.flatten(1)
    if len(rows) == 1:
        return input_distance(rows.unsqueeze(1))
    mean, std = batch_statistics(rows)
    loss = slack_distance(mean, torch.zeros_like(mean))
    loss = loss if std is None else loss + slack_distance(std, torch.ones_like(std))
    return loss.reshape(1)
