from __future__ import annotations

import pytest
import torch
from torch import Tensor

from datafree.losses import (
    gradient_diversity,
    gradient_matching,
    gradient_similarity,
)
from draws import normal


def unit_rows(count: int, width: int, seed: int) -> Tensor:
    values = normal(count, width, seed=seed)
    return values / values.norm(dim=1, keepdim=True)


def test_gradient_similarity_is_the_cosine_of_outer_products() -> None:
    """The gradient of half the squared residual of ``r = y - a W`` is ``-a r^T`` (A.7)."""
    inputs, residuals = normal(4, 6, seed=1), normal(4, 3, seed=2)
    weight = normal(6, 3, seed=3).requires_grad_()
    logits = residuals + (inputs @ weight).detach()
    rows = [
        torch.autograd.grad(0.5 * (y - a @ weight).square().sum(), [weight])[0].flatten()
        for a, y in zip(inputs, logits, strict=True)
    ]
    gradients = torch.nn.functional.normalize(torch.stack(rows))
    unit = tuple(part / part.norm(dim=1, keepdim=True) for part in (inputs, residuals))
    actual = gradient_similarity((unit[0], unit[1]), (unit[0], unit[1]))
    torch.testing.assert_close(actual, gradients @ gradients.T, rtol=1e-5, atol=1e-5)


def test_gradient_matching_by_hand() -> None:
    east, north = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    half = torch.tensor([[0.5, 0.75**0.5]])
    assert gradient_matching((east, east), (east, east)).item() == 0
    assert gradient_matching((east, east), (north, east)).item() == 1
    assert gradient_matching((east, -east), (half, half)).item() == pytest.approx(1.25)
    pair = torch.cat([east, east]), torch.cat([east, north])
    assert gradient_matching(pair, (pair[0], torch.cat([east, east]))).item() == 0.5


def test_gradient_diversity_by_hand() -> None:
    """Likeness of three samples and one from before; a sample's own place does not count."""
    east, half = [1.0, 0.0], [0.6, 0.8]
    inputs = torch.tensor([east, half, [0.0, 1.0], [-1.0, 0.0]])
    same = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    own = inputs[:3], same[:3]
    # Largest |cosines|: east with its opposite 1, half with north 0.8, north with half 0.8.
    assert gradient_diversity(own, (inputs, same)).item() == pytest.approx((1 + 0.8 + 0.8) / 3)
    assert gradient_diversity(own, own).item() == pytest.approx((0.6 + 0.8 + 0.8) / 3)
    assert gradient_diversity(own, own, 0.7).item() == pytest.approx((0 + 0.1 + 0.1) / 3)
    alone = inputs[:1], same[:1]
    assert gradient_diversity(alone, alone).item() == 0


def test_gradient_similarity_stays_within_one() -> None:
    one = unit_rows(5, 4, 1), unit_rows(5, 3, 2)
    other = unit_rows(7, 4, 3), unit_rows(7, 3, 4)
    found = gradient_similarity(one, other)
    assert found.shape == (5, 7)
    assert found.abs().max() <= 1 + 1e-6
