from __future__ import annotations

import itertools
import math

import pytest
import torch

from datafree.losses import (
    image_norm,
    low_pass,
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


def test_low_pass_by_the_full_transform() -> None:
    """Centred, as the paper writes it: frequency 0 in the middle, D0 in bins."""
    images, bins = normal(2, 3, 8, 6), torch.tensor(0.25)
    u, v = (torch.arange(n, dtype=torch.float64) - n // 2 for n in (8, 6))
    gain = torch.exp(-(u[:, None] ** 2 / (8 * bins) ** 2 + v**2 / (6 * bins) ** 2) / 2)
    spectrum = torch.fft.fftshift(torch.fft.fft2(images.double()), dim=(2, 3))
    found = torch.fft.ifft2(torch.fft.ifftshift(gain * spectrum, dim=(2, 3)))
    assert found.imag.abs().max() < 1e-12
    torch.testing.assert_close(low_pass(images, 0.25).double(), found.real, rtol=1e-4, atol=1e-6)


def test_low_pass_leaves_constants_and_takes_noise_off() -> None:
    assert torch.allclose(low_pass(torch.full((1, 2, 7, 7), 3.0), 0.1), torch.tensor(3.0))
    noise = normal(4, 3, 64, 64)
    # White noise keeps sqrt(mean gain^2), algorithms-2: 0.60 at 80 of 224.
    assert low_pass(noise, 80 / 224).std().item() == pytest.approx(0.60, abs=0.01)
    assert low_pass(noise, 100.0).sub(noise).abs().max() < 1e-3


def test_low_pass_is_a_gaussian_of_known_width() -> None:
    """``n / (2 pi D0)`` pixels."""
    dot = torch.zeros(1, 1, 33, 33)
    dot[..., 16, 16] = 1.0
    found = low_pass(dot, 0.1)[0, 0].sum(1)
    places = torch.arange(33) - 16.0
    assert (found * places**2).sum().sqrt().item() == pytest.approx(1 / (0.2 * math.pi), rel=1e-3)
