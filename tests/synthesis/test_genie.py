from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from datafree.config import InputSpec
from datafree.config import build as configure
from datafree.errors import ConfigError
from datafree.graph.capture import capture
from datafree.graph.taps import tap_batch_norms
from datafree.graph.watched import Statistics
from datafree.losses import batch_distance
from datafree.synthesis import _genie
from datafree.synthesis._generator import ImageGenerator
from datafree.synthesis.base import Batch
from datafree.synthesis.genie import Genie
from networks import SPEC, build, captured, images, randomized
from reference import genie_loss

pytestmark = pytest.mark.integration


def batch(size: int, seed: int = 0) -> Batch:
    return Batch(size, 0, torch.Generator().manual_seed(seed), lambda _: None)


class Watched:
    """What generators were given and made: latents, images, and the images' gradients."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.latents: list[Tensor] = []
        self.images: list[Tensor] = []
        self.weights: list[Tensor] = []
        watched, forward = self, ImageGenerator.forward

        def spy(self: ImageGenerator, latents: Tensor) -> Tensor:
            made = forward(self, latents)
            if made.requires_grad:
                made.retain_grad()
            watched.latents.append(latents.detach().clone())
            watched.images.append(made)
            watched.weights.append(self.get_parameter("linear.weight").detach().clone())
            return made

        monkeypatch.setattr(ImageGenerator, "forward", spy)


def rates(monkeypatch: pytest.MonkeyPatch) -> tuple[list[float], list[float]]:
    """Learning rates of the latents and of the generator at every step of Adam."""
    embedding: list[float] = []
    weights: list[float] = []
    step = torch.optim.Adam.step

    def spy(self: torch.optim.Adam, *arguments: Any) -> Any:
        (group,) = self.param_groups
        (embedding if len(group["params"]) == 1 else weights).append(group["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    return embedding, weights


@pytest.mark.parametrize("name", ["Tiny", "InPlaceResidual", "Grouped"])
def test_every_step_follows_the_gradient_of_the_loss(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(monkeypatch)
    model = build(name).requires_grad_(False)
    Genie(iterations=3, swing=False).generate(captured(name), SPEC, 4)
    assert len(watched.images) == 3
    for made in watched.images:
        pixels = made.detach().requires_grad_()
        (expected,) = torch.autograd.grad(genie_loss(model, pixels), pixels)
        assert made.grad is not None
        torch.testing.assert_close(made.grad, expected, rtol=1e-3, atol=1e-6)


def swung_loss(model: nn.Module, x: Tensor, rows: int, columns: int) -> Tensor:
    """`genie_loss` of Tiny with the input of its strided convolution shifted by one offset."""

    def shift(_module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        padded = F.pad(inputs[0], (1, 1, 1, 1), mode="reflect")
        return padded[:, :, rows : rows + 8, columns : columns + 8]

    handle = model.get_submodule("conv2").register_forward_pre_hook(shift)
    loss = genie_loss(model, x)
    handle.remove()
    return loss


def test_with_swing_every_gradient_is_that_of_one_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    model = build("Tiny").requires_grad_(False)
    Genie(iterations=8).generate(captured("Tiny"), SPEC, 3)
    found: set[tuple[int, int]] = set()
    for made in watched.images:
        errors: dict[tuple[int, int], float] = {}
        for offset in [(rows, columns) for rows in (0, 1, 2) for columns in (0, 1, 2)]:
            pixels = made.detach().requires_grad_()
            (expected,) = torch.autograd.grad(swung_loss(model, pixels, *offset), pixels)
            assert made.grad is not None
            errors[offset] = (made.grad - expected).abs().max().item()
        best = min(errors, key=errors.__getitem__)
        assert errors[best] < 1e-5
        found.add(best)
    assert len(found) > 2


def test_latents_and_weights_take_the_steps_of_adam(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step of Adam has the size of the learning rate, against the gradient's sign."""
    watched = Watched(monkeypatch)
    Genie(iterations=2, embedding_lr=0.3, generator_lr=0.02).generate(captured("Tiny"), SPEC, 4)
    moved = (watched.latents[1] - watched.latents[0]).abs()
    assert moved.median().item() == pytest.approx(0.3, rel=1e-3)
    moved = (watched.weights[1] - watched.weights[0]).abs()
    assert moved.median().item() == pytest.approx(0.02, rel=1e-2)


def test_latents_are_standard_normal(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    Genie(iterations=1).generate(captured("Tiny"), SPEC, 64)
    (start,) = watched.latents
    assert start.shape == (64, 256)
    assert start.mean().item() == pytest.approx(0, abs=0.03)
    assert start.std().item() == pytest.approx(1, abs=0.03)


def test_the_images_are_those_of_the_last_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    result = Genie(iterations=5).generate(captured("Tiny"), SPEC, 4)
    assert len(watched.images) == 5
    assert torch.equal(result.images, watched.images[-1].detach())
    assert not torch.equal(result.images, watched.images[-2].detach())


@pytest.mark.parametrize("swing", [True, False])
def test_the_loss_falls(swing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    model = build("Tiny")
    result = Genie(iterations=40, swing=swing).generate(captured("Tiny"), SPEC, 8)
    with torch.no_grad():
        assert genie_loss(model, result.images) < 0.2 * genie_loss(model, watched.images[0])
        assert genie_loss(model, result.images) < 0.2 * genie_loss(model, images(8))


def test_batches_share_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    teacher, method = captured("Tiny"), Genie(iterations=2, batch_size=2)
    method.generate(teacher, SPEC, 4)
    assert not torch.equal(watched.weights[0], watched.weights[2]), "a new generator"
    assert not torch.equal(watched.latents[0], watched.latents[2])
    state = method.prepare(teacher, SPEC, torch.Generator())
    first, _ = method.make_batch(teacher, SPEC, batch(2, 7), state)
    method.make_batch(teacher, SPEC, batch(3, 8), state)
    again, _ = method.make_batch(teacher, SPEC, batch(2, 7), state)
    assert torch.equal(again, first)


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [1]), (5, [5]), (128, [128]), (129, [65, 64]), (300, [100] * 3)]
)
def test_batches_are_about_equal(count: int, sizes: list[int]) -> None:
    size = Genie().batch_images(captured("Tiny"), count)
    assert [min(size, count - start) for start in range(0, count, size)] == sizes


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 1, 1), (1, 28, 20), (1, 9, 5)])
@pytest.mark.parametrize("count", [1, 3])
def test_any_image_and_any_number(
    shape: tuple[int, int, int], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single image has company while it is made, none in the set."""
    channels = shape[0]
    spec = InputSpec(shape=shape, mean=(0.5,) * channels, std=(0.5,) * channels, classes=3)
    conv, norm = nn.Conv2d(channels, 2, 3, stride=2, padding=1), nn.BatchNorm2d(2)
    width = 2 * -(-shape[1] // 2) * -(-shape[2] // 2)
    network = nn.Sequential(conv, norm, nn.Flatten(), nn.Linear(width, 3))
    teacher = capture(randomized(network, images(8, shape=shape)), spec)
    watched = Watched(monkeypatch)
    result = Genie(iterations=2, batch_size=2, label_weight=0.5).generate(teacher, spec, count)
    assert result.images.shape == (count, *shape)
    assert result.targets is not None
    assert len(result.targets) == count
    assert all(len(made) >= 2 for made in watched.images)


def test_the_schedule_of_the_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    embedding, weights = rates(monkeypatch)
    method = Genie(iterations=7, generator_decay_every=3, generator_gamma=0.5, patience=1000)
    method.generate(captured("Tiny"), SPEC, 2)
    assert weights == pytest.approx([0.01] * 3 + [0.005] * 3 + [0.0025])
    assert embedding == pytest.approx([0.1] * 7)


def test_the_schedule_of_the_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that never falls: one bad step more than `patience`, then a tenth of the rate."""
    embedding, weights = rates(monkeypatch)

    def never_falling(found: Statistics) -> Tensor:
        return found.gaps.sum() * 0 + 1e9

    monkeypatch.setattr(_genie, "layers_distance", never_falling)
    Genie(iterations=12, patience=2, min_lr=0.005).generate(captured("Tiny"), SPEC, 2)
    assert embedding == pytest.approx([0.1] * 4 + [0.01] * 3 + [0.005] * 5)
    assert weights == pytest.approx([0.01] * 12)


def test_defaults_are_those_of_the_published_results() -> None:
    method = Genie()
    assert (method.iterations, method.batch_size, method.latent_dim) == (4000, 128, 256)
    assert (method.embedding_lr, method.generator_lr) == (0.1, 0.01)
    assert (method.generator_gamma, method.generator_decay_every) == (0.95, 100)
    assert (method.patience, method.min_lr) == (100, 1e-4)
    assert method.swing
    assert method.label_weight == 0
    assert method.batch_iterations == 4000


@pytest.mark.parametrize(
    ("option", "value"),
    [("iterations", 0), ("batch_size", 0), ("latent_dim", 0), ("generator_gamma", 1.1),
     ("embedding_lr", 0), ("generator_lr", -1), ("generator_decay_every", 0), ("label_weight", -1)],
)  # fmt: skip
def test_options_have_bounds(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"option of genie: {option}"):
        configure(Genie, {option: value}, "option of genie")


def test_a_margin_without_a_weight_is_refused() -> None:
    with pytest.raises(ConfigError, match="margin has no effect without label_weight"):
        configure(Genie, {"margin": 5.0}, "option of genie")


def test_labels_pull_towards_their_class(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    model = build("Tiny").requires_grad_(False)
    method = Genie(iterations=1, label_weight=2.5, swing=False)
    result = method.generate(captured("Tiny"), SPEC, 7)
    assert result.targets is not None
    counts = torch.bincount(result.targets, minlength=5)
    assert counts.max() - counts.min() <= 1
    pixels = watched.images[0].detach().requires_grad_()
    logits = model(pixels)
    picked = logits.exp()[range(7), result.targets] / logits.exp().sum(1)
    loss = genie_loss(model, pixels) - 2.5 * picked.log().mean()
    (expected,) = torch.autograd.grad(loss, pixels)
    assert watched.images[0].grad is not None
    torch.testing.assert_close(watched.images[0].grad, expected, rtol=1e-3, atol=1e-6)


def test_a_margin_counts_what_is_missing_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    model = build("Tiny").requires_grad_(False)
    method = Genie(iterations=1, label_weight=2.5, margin=0.3, swing=False)
    result = method.generate(captured("Tiny"), SPEC, 7)
    assert result.targets is not None
    pixels = watched.images[0].detach().requires_grad_()
    missing = torch.zeros(())
    for row, target in zip(model(pixels), result.targets.tolist(), strict=True):
        others = torch.cat((row[:target], row[target + 1 :]))
        missing = missing + F.relu(0.3 - row[target] + others.max())
    loss = genie_loss(model, pixels) + 2.5 * missing / 7
    (expected,) = torch.autograd.grad(loss, pixels)
    assert watched.images[0].grad is not None
    torch.testing.assert_close(watched.images[0].grad, expected, rtol=1e-3, atol=1e-6)


def test_a_layer_called_twice_counts_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    model = build("SharedNorm").requires_grad_(False)
    Genie(iterations=1, swing=False).generate(captured("SharedNorm"), SPEC, 3)
    pixels = watched.images[0].detach().requires_grad_()
    (expected,) = torch.autograd.grad(genie_loss(model, pixels), pixels)
    assert watched.images[0].grad is not None
    torch.testing.assert_close(watched.images[0].grad, expected, rtol=1e-3, atol=1e-6)


def test_batch_norms_behind_dense_layers_have_deviations() -> None:
    """Over a batch they have; image by image they have none."""
    teacher: fx.GraphModule = captured("Dense")
    compared: list[tuple[float, float]] = []
    with tap_batch_norms(teacher) as taps, torch.no_grad():
        teacher(images(6))
        for layer, features in taps:
            if features.ndim == 2:
                compared.append(dense_distances(layer, features))
    assert len(compared) == 2
    for actual, expected in compared:
        assert math.isclose(actual, expected, rel_tol=1e-4)


def dense_distances(layer: _BatchNorm, features: Tensor) -> tuple[float, float]:
    mean, variance = layer.running_mean, layer.running_var
    assert mean is not None
    assert variance is not None
    std = (variance + 1e-6).sqrt()
    gaps = (features.mean(0) - mean) ** 2 + ((features.var(0) + 1e-6).sqrt() - std) ** 2
    return batch_distance(features, mean, std).item(), gaps.mean().item()


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_no_hooks(stop: type[BaseException]) -> None:
    teacher, method = captured("Tiny"), Genie(iterations=3)
    state = method.prepare(teacher, SPEC, torch.Generator())

    def fail(_: int) -> None:
        raise stop

    step: Callable[[int], None] = fail
    with pytest.raises(stop):
        method.make_batch(teacher, SPEC, Batch(2, 0, torch.Generator(), step), state)
    assert not any(module._forward_pre_hooks for module in state.modules())
    assert not any(value.requires_grad for value in state.parameters())
