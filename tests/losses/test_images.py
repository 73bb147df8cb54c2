from __future__ import annotations

import itertools
import math

import pytest
import torch

from datafree.losses import (
    image_norm,
    total_variation,
)
from draws import normal


def test_total_variation_by_loops() -> None:
    images = normal(2, 3, 4, 5)
    sums = dict.fromkeys([(0, 1), (1, 0), (1, 1), (1, -1)], 0.0)
    for b, c, i, j in itertools.product(range(2), range(3), range(4), range(5)):
        for di, dj in sums:
            if i + di < 4 and 0 <= j + dj < 5:
                sums[di, dj] += float(images[b, c, i + di, j + dj] - images[b, c, i, j]) ** 2
    expected = sum(math.sqrt(total) for total in sums.values())
    assert total_variation(images).item() == pytest.approx(expected, rel=1e-5)


def test_total_variation_grows_with_the_root_of_the_batch() -> None:
    images = normal(1, 3, 6, 6)
    four = total_variation(images.expand(4, -1, -1, -1)).item()
    assert four == pytest.approx(2 * total_variation(images).item(), rel=1e-5)


def test_priors_of_constant_images_have_finite_gradients() -> None:
    images = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = total_variation(images) + image_norm(images)
    (gradient,) = torch.autograd.grad(loss, images)
    assert loss == 0
    assert torch.isfinite(gradient).all()


def test_image_norm_by_hand() -> None:
    images = torch.tensor([[[[3.0, 4.0]]], [[[0.0, 1.0]]]])
    assert image_norm(images).item() == 3
