"""What attention says of images: how unlike their patches are, and where it looks.

Shapes: B images, P patches, d features of a patch.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

DENSITY_FLOOR = 1e-4
"""Added to a density whose logarithm is taken, as in PSAQ-ViT's code."""
_LEAST_EXPONENT = -50.0


class _MeanKernels(torch.autograd.Function):
    """``1/n sum_i exp(-(v_i - x_k)^2)`` of the rows of (B, n) at places (B, k): (B, k).

    With one exponential per value and place for both ways; by autograd it takes four times as long,
    and most of the network's own time.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Tensor) -> Tensor:
        """See the class."""
        means: list[Tensor] = []
        slopes: list[Tensor] = []
        for place in places.split(1, dim=1):
            distance = values - place
            # Exponents below this are nothing in float32, and slow where they are denormal.
            kernel = distance.square().neg_().clamp_(min=_LEAST_EXPONENT).exp_()
            means.append(kernel.mean(1))
            slopes.append(kernel.mul_(distance))
        ctx.save_for_backward(*slopes)
        return torch.stack(means, 1)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch calls it by position
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor, None]:
        """``d / d v_i = -2/n (v_i - x_k) exp(-(v_i - x_k)^2)``; places carry no gradient."""
        slopes: tuple[Tensor, ...] = ctx.saved_tensors
        weights = grad_outputs[0] * (-2 / slopes[0].shape[1])
        total = torch.zeros_like(slopes[0])
        for slope, weight in zip(slopes, weights.split(1, dim=1), strict=True):
            total.addcmul_(slope, weight)
        return total, None


def patch_similarity(patches: Tensor) -> Tensor:
    """Cosine similarities of all pairs of patches of an image (PSAQ-ViT's Gamma).

    Args:
        patches: (B, P, d).

    Returns:
        (B, P, P), the diagonal being 1.
    """
    unit = F.normalize(patches, dim=-1)
    return unit @ unit.transpose(-2, -1)


def differential_entropy(values: Tensor, bandwidth: float = 0.01, points: int = 10) -> Tensor:
    """Entropy of the density that `values` are samples of, by kernels and the trapezoid rule.

    ``H = -int f(x) log f(x) dx`` with ``f(x) = 1/(n h) sum_i K((x - v_i) / h)``, K the standard
    normal density, taken at `points` places evenly from the least to the greatest value. Places
    carry no gradient.

    Args:
        values: (B, n), a sample in every row.
        bandwidth: h, in the unit of the values.
        points: at least 2.

    Returns:
        (B,), in nats.
    """
    scaled = values / (bandwidth * math.sqrt(2))
    low, high = torch.aminmax(scaled.detach(), dim=1, keepdim=True)
    places = low + (high - low) * torch.linspace(
        0, 1, points, dtype=values.dtype, device=values.device
    )
    kernels = cast("Tensor", _MeanKernels.apply(scaled, places))
    density = kernels / (bandwidth * math.sqrt(2 * math.pi))
    integrand = density * torch.log(density + DENSITY_FLOOR)
    return -torch.trapezoid(integrand, places * (bandwidth * math.sqrt(2)), dim=1)


def attention_distance(attention: Tensor, prior: Tensor) -> Tensor:
    """Mean squared distance of attention from where it is to look, even attention being 1.

    ``mean (P a - P p)^2``: multiplied by the number of patches, so that it does not depend on it.

    Args:
        attention: (…, P), shares of the attention.
        prior: shape of `attention`, likewise.

    Returns:
        Scalar.
    """
    return (attention.shape[-1] * (attention - prior)).square().mean()
