"""Losses of attention against direct sums and autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from datafree.losses import attention_distance, differential_entropy, patch_similarity


def test_similarities_are_cosines() -> None:
    patches = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [-1.0, -1.0]]])
    half = math.sqrt(0.5)
    expected = [[1, 1, 0, -half], [1, 1, 0, -half], [0, 0, 1, -half], [-half, -half, -half, 1]]
    torch.testing.assert_close(patch_similarity(patches)[0], torch.tensor(expected))


def direct(values: Tensor, bandwidth: float, points: int) -> Tensor:
    """The entropy of one row, sum by sum."""
    low, high = float(values.detach().min()), float(values.detach().max())
    places = [low + (high - low) * k / (points - 1) for k in range(points)]
    terms: list[Tensor] = []
    for place in places:
        kernels = torch.exp(-0.5 * ((place - values) / bandwidth) ** 2)
        density = kernels.mean() / (bandwidth * math.sqrt(2 * math.pi))
        terms.append(-density * torch.log(density + 1e-4))
    step = (high - low) / (points - 1)
    return sum((terms[k] + terms[k + 1]) / 2 * step for k in range(points - 1))  # pyright: ignore


@pytest.mark.parametrize(("bandwidth", "points"), [(0.01, 10), (0.1, 10), (0.05, 40)])
def test_entropy_and_its_gradient(bandwidth: float, points: int) -> None:
    random = torch.Generator().manual_seed(0)
    values = torch.randn(3, 50, generator=random, dtype=torch.float64, requires_grad=True)
    found = differential_entropy(values, bandwidth, points)
    expected = torch.stack([direct(row, bandwidth, points) for row in values])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(found @ weights, values)
    (wanted,) = torch.autograd.grad(expected @ weights, values)
    torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-9)


def test_entropy_of_a_normal_distribution() -> None:
    """With many samples and places it is ``log(s sqrt(2 pi e))``."""
    random = torch.Generator().manual_seed(0)
    values = 2 * torch.randn(1, 40_000, generator=random)
    found = differential_entropy(values, bandwidth=0.1, points=400)
    assert found.item() == pytest.approx(math.log(2 * math.sqrt(2 * math.pi * math.e)), abs=0.02)


def test_values_that_vary_have_more_entropy() -> None:
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 400, generator=random)
    found = differential_entropy(torch.cat([0.02 * noise, 0.2 * noise]))
    assert found[1] > found[0] + 1


def test_equal_values_are_no_accident() -> None:
    found = differential_entropy(torch.ones(1, 9, requires_grad=True))
    assert torch.isfinite(found).all()


def test_the_distance_does_not_depend_on_the_number_of_patches() -> None:
    even, all_on_half = torch.full((1, 4), 0.25), torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    assert attention_distance(even, even).item() == 0
    assert attention_distance(all_on_half, even).item() == pytest.approx(1)
    finer = all_on_half.repeat_interleave(2, 1) / 2
    assert attention_distance(finer, torch.full((1, 8), 0.125)).item() == pytest.approx(1)
