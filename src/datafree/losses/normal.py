"""Expectations of normal values."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def clipped_normal_mean(mean: Tensor, std: Tensor, upper: float = math.inf) -> Tensor:
    """What an activation function that clips to ``[0, upper]`` returns of a normal, on average.

    The analytic part of bias correction (Nagel et al. 2019, algorithms B.4.4). With
    ``a = -m / s`` and ``z = (u - m) / s``, the normal density ``phi`` and distribution ``Phi``,

        E[min(max(N(m, s^2), 0), u)] =
            m (Phi(z) - Phi(a)) + s (phi(a) - phi(z)) + u (1 - Phi(z)),

    which for ReLU, ``u = inf``, is ``s phi(a) + m (1 - Phi(a))``.

    Args:
        mean: (C,) of the values before the activation: the offset of a batch norm.
        std: (C,) of the same values, not negative: the magnitude of its slope. Where it is 0 the
            value is the clipped `mean`.
        upper: 6 for ReLU6, infinite for ReLU.

    Returns:
        (C,) expectations in ``[0, upper]``, of the dtype of `mean`.
    """
    exact = mean.double().clamp(0, upper)
    # Any positive number does where the deviation is 0: those entries are not used.
    deviation = torch.where(std > 0, std.double(), 1.0)
    result = _rectified(mean.double(), deviation)
    if math.isfinite(upper):
        # min(max(x, 0), u) = max(x, 0) - max(x - u, 0)
        result = result - _rectified(mean.double() - upper, deviation)
    return torch.where(std > 0, result.clamp(0, upper), exact).to(mean.dtype)


def _rectified(mean: Tensor, std: Tensor) -> Tensor:
    """``E[max(N(m, s^2), 0)] = s phi(m / s) + m Phi(m / s)`` of float64 tensors."""
    ratio = mean / std
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    return std * density + mean * torch.special.ndtr(ratio)
