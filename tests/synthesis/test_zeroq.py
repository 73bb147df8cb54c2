from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from datafree.graph.watched import Statistics
from datafree.losses import input_distance
from datafree.synthesis import _images
from datafree.synthesis._images import balanced_targets
from datafree.synthesis.base import Batch
from datafree.synthesis.zeroq import ZeroQ
from networks import SPEC, build, captured, images
from reference import input_loss, zeroq_loss
from watching import Watched


def batch(size: int, seed: int = 0) -> Batch:
    return Batch(size, 0, torch.Generator().manual_seed(seed), lambda _: None)


@pytest.mark.parametrize("name", ["Tiny", "InPlaceResidual", "Grouped"])
def test_every_step_follows_the_gradient_of_the_loss(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(monkeypatch)
    model = build(name).requires_grad_(False)
    ZeroQ(iterations=3).generate(captured(name), SPEC, 4)
    assert len(watched.images) == 3
    for pixels, gradient in zip(watched.images, watched.gradients, strict=True):
        pixels.requires_grad_()
        (expected,) = torch.autograd.grad(zeroq_loss(model, pixels), pixels)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_start_is_standard_normal(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    ZeroQ(iterations=1, batch_size=64).generate(captured("Tiny"), SPEC, 64)
    (start,) = watched.images
    assert start.mean().item() == pytest.approx(0, abs=0.05)
    assert start.std().item() == pytest.approx(1, abs=0.05)


def test_the_loss_falls() -> None:
    model, start = build("Tiny"), images(8, 9)
    result = ZeroQ(iterations=150).generate(captured("Tiny"), SPEC, 8)
    with torch.no_grad():
        assert zeroq_loss(model, result.images) < 0.2 * zeroq_loss(model, start)


def test_input_term_is_about_zero_on_standard_normal_images() -> None:
    x = images(4, 0, (3, 64, 64))
    assert input_distance(x).mean().item() == pytest.approx(input_loss(x).item(), rel=1e-4)
    assert input_loss(x) < 0.003
    assert input_distance(1.5 * x).mean() > 0.5


def never_falling(found: Statistics, *_: Any) -> Tensor:
    return found.gaps.sum() * 0 + 1e9


def test_the_rate_falls_when_the_loss_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = Watched(monkeypatch).rates
    # A loss that never falls: one bad step that counts, then a tenth of the rate.
    monkeypatch.setattr(_images, "statistics_loss", never_falling)
    method = ZeroQ(
        iterations=12, least_fall=0, patience=2, learning_rate=0.5, min_learning_rate=0.01
    )
    method.generate(captured("Tiny"), SPEC, 2)
    assert rates[0] == 0.5
    assert rates == sorted(rates, reverse=True)
    assert {round(rate, 6) for rate in rates} == {0.5, 0.05, 0.01}


@pytest.mark.parametrize("size", [1, 4, 5, 10, 23])
def test_targets_are_balanced_and_shuffled(size: int) -> None:
    targets = balanced_targets(batch(size), 5)
    counts = torch.bincount(targets, minlength=5)
    assert counts.sum() == size
    assert counts.max() - counts.min() <= 1
    draws = {tuple(balanced_targets(batch(size, seed), 5).tolist()) for seed in range(20)}
    assert len(draws) > 1


def test_labels_pull_towards_their_class(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    model = build("Tiny").requires_grad_(False)
    result = ZeroQ(iterations=1, label_weight=2.5).generate(captured("Tiny"), SPEC, 4)
    assert result.targets is not None
    pixels = watched.images[0].requires_grad_()
    logits = model(pixels)
    picked = logits.exp()[range(4), result.targets] / logits.exp().sum(1)
    loss = zeroq_loss(model, pixels) - 2.5 * picked.log().mean()
    (expected,) = torch.autograd.grad(loss, pixels)
    torch.testing.assert_close(watched.gradients[0], expected, rtol=1e-4, atol=1e-6)


def test_priors_have_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    model = build("Tiny").requires_grad_(False)
    ZeroQ(iterations=1, tv_weight=0.3, l2_weight=0.7).generate(captured("Tiny"), SPEC, 4)
    pixels = watched.images[0].requires_grad_()
    down, right = pixels.diff(dim=2), pixels.diff(dim=3)
    diagonal = pixels[:, :, 1:, 1:] - pixels[:, :, :-1, :-1]
    other = pixels[:, :, 1:, :-1] - pixels[:, :, :-1, 1:]
    variation = sum((d**2).sum() ** 0.5 for d in (down, right, diagonal, other))
    norm = sum((image**2).sum() ** 0.5 for image in pixels) / 4
    loss = zeroq_loss(model, pixels) + 0.3 * variation + 0.7 * norm
    (expected,) = torch.autograd.grad(loss, pixels)
    torch.testing.assert_close(watched.gradients[0], expected, rtol=1e-4, atol=1e-6)


def test_jitter_shows_rolled_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every gradient is that of the loss at some shift of at most one pixel, and shifts change."""
    watched = Watched(monkeypatch)
    model = build("Tiny").requires_grad_(False)
    ZeroQ(iterations=8, jitter=1).generate(captured("Tiny"), SPEC, 2)
    found: set[tuple[int, int]] = set()
    for pixels, gradient in zip(watched.images, watched.gradients, strict=True):
        errors: dict[tuple[int, int], float] = {}
        for shift in [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
            x = pixels.clone().requires_grad_()
            (expected,) = torch.autograd.grad(zeroq_loss(model, torch.roll(x, shift, (2, 3))), x)
            errors[shift] = (gradient - expected).abs().max().item()
        best = min(errors, key=errors.__getitem__)
        assert errors[best] < 1e-5
        found.add(best)
    assert len(found) > 2


def test_batches_have_the_size_asked_for() -> None:
    method, teacher = ZeroQ(batch_size=32), captured("Tiny")
    assert [method.batch_images(teacher, count) for count in (5, 32, 100)] == [5, 32, 32]
    assert math.isclose(method.learning_rate, 0.5)
    assert method.batch_iterations == 500


@pytest.mark.parametrize("options", [{}, {"label_weight": 2.0, "tv_weight": 0.3, "jitter": 1}])
def test_chunks_change_nothing_but_the_speed(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches passed two images at a time follow the gradients of the whole batch."""
    passed: list[int] = []
    gradients: list[list[Tensor]] = []
    watched = Watched(monkeypatch)
    for positions in (10**9, 2 * SPEC.shape[1] * SPEC.shape[2]):
        monkeypatch.setattr(_images, "_CHUNK_POSITIONS", positions)
        passed.append(_images.chunk_size(torch.empty(5, *SPEC.shape)))
        ZeroQ(iterations=2, **options).generate(captured("Tiny"), SPEC, 5)
        gradients.append(list(watched.gradients))
        watched.gradients.clear()
    assert passed[0] >= 5
    assert passed[1] == 2
    for whole, chunked in zip(*gradients, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("side", "together"), [(32, 256), (64, 64), (160, 10), (224, 1), (512, 1)])
def test_large_images_pass_alone(side: int, together: int) -> None:
    """What a network keeps to go back grows with the image."""
    assert _images.chunk_size(torch.empty(1, 3, side, side)) == together


@pytest.mark.parametrize(
    ("start", "low", "high", "mean", "deviation"),
    [
        # (0 - 127.5) / 5418.75 and (254 - 127.5) / 5418.75; whole numbers 0 … 254 have mean 127 and
        # variance (255^2 - 1) / 12.
        ("tiny", -0.023530, 0.023345, -0.5 / 5418.75, math.sqrt((255**2 - 1) / 12) / 5418.75),
        ("uniform", 0.0, 1.0, 0.5, 1 / math.sqrt(12)),
    ],
)
def test_starts_of_the_released_codes(
    start: str, low: float, high: float, mean: float, deviation: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    watched = Watched(monkeypatch)
    method = ZeroQ(iterations=1, batch_size=64, start=start)  # pyright: ignore
    method.generate(captured("Tiny"), SPEC, 64)
    (found,) = watched.images
    assert found.min().item() == pytest.approx(low, abs=deviation / 100)
    assert found.max().item() == pytest.approx(high, abs=deviation / 100)
    assert found.mean().item() == pytest.approx(mean, abs=0.03 * deviation)
    assert found.std().item() == pytest.approx(deviation, rel=0.02)
    if start == "tiny":
        numbers = found * 5418.75 + 127.5
        torch.testing.assert_close(numbers, numbers.round(), rtol=0, atol=1e-3)
        assert deviation == pytest.approx(0.0136, abs=5e-5)


def correlation(images: Tensor, noise: Tensor, *, structure: bool) -> Tensor:
    """DSG Eq. (9) straight: kernels of unit rows, eigenpairs in ascending order."""
    kernels = [
        torch.stack([torch.stack([(a * b).sum() / a.norm() / b.norm() for b in rows])
                     for a in rows]).double()
        for rows in (images.flatten(1), noise.flatten(1))
    ]  # fmt: skip
    (own, vectors), (other, others) = (torch.linalg.eigh(kernel) for kernel in kernels)
    total = (own - other).abs().sum()
    if structure:
        weights = (own - own.min()) / (own.max() - own.min())
        for i in range(len(own)):
            total = total - weights[i] * (vectors[:, i].detach() @ others[:, i]).abs()
    return total.clamp(min=0)


@pytest.mark.parametrize(
    ("mode", "structure"), [("eigvals", False), ("eigvecs_detached", True)]
)  # fmt: skip
def test_correlation_alone_is_added_over_the_number_of_layers(
    mode: str, structure: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row "SCI alone" of DSG's Table 1; Tiny has two batch norms.

    With its structure term, Eq. (9) is 0 unless images are alike. These begin uniform,
    and the first step drives them apart.
    """
    watched, drawn = Watched(monkeypatch), list[Tensor]()
    real = _images.correlation_inhibition

    def spy(images: Tensor, noise: Tensor, *rest: Any) -> Tensor:
        drawn.append(noise)
        return real(images, noise, *rest)

    monkeypatch.setattr(_images, "correlation_inhibition", spy)
    model = build("Tiny").requires_grad_(False)
    options: dict[str, Any] = {"correlation_weight": 30.0, "correlation": mode}
    ZeroQ(iterations=2, start="uniform", **options).generate(captured("Tiny"), SPEC, 4)
    assert not torch.equal(drawn[0], drawn[1]), "drawn afresh in every step"
    changed: list[float] = []
    for pixels, noise, gradient in zip(watched.images, drawn, watched.gradients, strict=True):
        pixels.requires_grad_()
        added = 30 / 2 * correlation(pixels, noise, structure=structure)
        (expected,) = torch.autograd.grad(zeroq_loss(model, pixels) + added, pixels)
        (without,) = torch.autograd.grad(zeroq_loss(model, pixels), pixels)
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)
        changed.append((gradient - without).abs().max().item())
    assert changed[0] > 1e-3
    assert (changed[1] > 1e-3) != structure


def test_a_single_image_has_no_correlation() -> None:
    method = ZeroQ(iterations=2, correlation_weight=1.0)
    images = method.generate(captured("Tiny"), SPEC, 1).images
    assert bool(torch.isfinite(images).all())
