"""Likeness of per-sample gradients of a classifier (SADAG)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def gradient_similarity(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """Cosines between per-sample gradients of a classifier's weights, without forming them (A.7).

    For one sample with classifier input ``a`` and logit residual ``r``, the gradient of half the
    squared residual is the rank-one matrix ``-a r^T``, so
    ``cos(g_i, g_j) = cos(a_i, a_j) cos(r_i, r_j)``.

    Args:
        one: inputs (B, D) and residuals (B, C), rows of unit length.
        other: likewise (M, D) and (M, C).

    Returns:
        (B, M), within -1 and 1.
    """
    return (one[0] @ other[0].T) * (one[1] @ other[1].T)


def gradient_matching(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """SADAG's ``1/B sum_i 1 - cos(g_i, g'_i)`` of gradients row by row, Eq. (18); a scalar.

    Args:
        one: inputs (B, D) and residuals (B, C) of a classifier, rows of unit length.
        other: the same of B neighbours.
    """
    return 1 - ((one[0] * other[0]).sum(1) * (one[1] * other[1]).sum(1)).mean()


def gradient_diversity(
    one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], threshold: float = 0.0
) -> Tensor:
    """SADAG's ``1/B sum_i max_(j != i) max(|cos(g_i, g_j)| - threshold, 0)``, Eq. (19); a scalar.

    Args:
        one: inputs (B, D) and residuals (B, C) of a classifier, rows of unit length.
        other: of M samples, the first B of which are those of `one`.
        threshold: likeness that costs nothing.
    """
    likeness = gradient_similarity(one, other).abs()
    own = torch.eye(*likeness.shape, dtype=torch.bool, device=likeness.device)
    return F.relu(likeness.masked_fill(own, 0.0) - threshold).amax(1).mean()


def set_gradient(features: tuple[Tensor, Tensor]) -> Tensor:
    """The gradient of a whole set for a classifier's weights, Eq. (12): ``-1/N A^T E``, (D, C).

    Args:
        features: inputs A (N, D) and logit residuals E (N, C) of a classifier, as they are.
    """
    return -features[0].T @ features[1] / len(features[0])


def set_matching(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """``1 - cos(g(X), g(X'))`` of the gradients of two sets, Eq. (15); a scalar.

    Args:
        one: inputs (N, D) and residuals (N, C) of a classifier, as they are.
        other: the same of another set, of any size.
    """
    pair = (set_gradient(features).flatten() for features in (one, other))
    return 1 - F.cosine_similarity(*pair, dim=0)
