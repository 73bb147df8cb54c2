"""Priors on images."""

from __future__ import annotations

import torch
from torch import Tensor


def total_variation(images: Tensor) -> Tensor:
    """DeepInversion's smoothness prior: norms of neighbour differences in four directions.

    The norm runs over the whole batch and is neither squared nor averaged, so it grows with
    sqrt(B).

    Args:
        images: (B, C, H, W).

    Returns:
        Scalar.
    """
    pairs = (
        (images[..., :, 1:], images[..., :, :-1]),
        (images[..., 1:, :], images[..., :-1, :]),
        (images[..., 1:, 1:], images[..., :-1, :-1]),
        (images[..., 1:, :-1], images[..., :-1, 1:]),
    )
    return torch.stack([torch.linalg.vector_norm(a - b) for a, b in pairs]).sum()


def image_norm(images: Tensor) -> Tensor:
    """Mean over images of their Euclidean norm: scalar, from (B, C, H, W)."""
    return torch.linalg.vector_norm(images.flatten(1), dim=1).mean()
