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


def low_pass(images: Tensor, cutoff: float) -> Tensor:
    """Images without their high frequencies (SynQ Eq. 4): ``IFFT(G FFT(x))`` of every channel.

    ``G = exp(-(u^2 + v^2) / (2 D0^2))`` at u and v bins from frequency 0, where D0 is `cutoff`
    times the side, of height and width each. Opposite edges are neighbours.

    Args:
        images: (B, C, H, W).
        cutoff: positive; as a share of the side, so that it does not depend on the size.

    Returns:
        (B, C, H, W).
    """
    height, width = images.shape[2:]
    rows = torch.fft.fftfreq(height, device=images.device)
    columns = torch.fft.rfftfreq(width, device=images.device)
    gain = torch.exp(-(rows[:, None].square() + columns.square()) / (2 * cutoff**2))
    return torch.fft.irfft2(torch.fft.rfft2(images) * gain, s=(height, width))
