from __future__ import annotations

import math

import pytest
import torch

from datafree.losses import (
    clipped_normal_mean,
)
from draws import normal


@pytest.mark.parametrize("upper", [math.inf, 6.0, 0.5])
def test_clipped_normal_mean_is_that_of_samples(upper: float) -> None:
    mean = torch.tensor([-2.0, -0.3, 0.0, 0.4, 3.0, 5.9, 6.0, 9.0])
    for std in (0.05, 1.0, 4.0):
        deviation = torch.full_like(mean, std)
        samples = mean + std * normal(300_000, 1)
        expected = samples.clamp(0, upper).mean(0)
        found = clipped_normal_mean(mean, deviation, upper)
        torch.testing.assert_close(found, expected, rtol=0, atol=6e-3 * std)
        assert found.dtype == mean.dtype


def test_clipped_normal_mean_by_hand() -> None:
    """Half a normal: ``s / sqrt(2 pi)``; half way up ReLU6, by symmetry: 3."""
    zero = torch.zeros(1, dtype=torch.float64)
    assert clipped_normal_mean(zero, zero + 2).item() == pytest.approx(2 / math.sqrt(2 * math.pi))
    assert clipped_normal_mean(zero + 3, zero + 7, 6.0).item() == pytest.approx(3)


def test_clipped_normal_mean_at_the_ends() -> None:
    mean = torch.tensor([-4.0, 2.0, 7.0])
    still = clipped_normal_mean(mean, torch.zeros(3), 6.0)
    assert torch.equal(still, torch.tensor([0.0, 2.0, 6.0]))
    for upper in (math.inf, 6.0):
        far = clipped_normal_mean(torch.tensor([-1e4, 1e4]), torch.full((2,), 1e-3), upper)
        assert torch.equal(far, torch.tensor([0.0, min(1e4, upper)]))
