from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from datafree.config import InputSpec
from datafree.config import build as configure
from datafree.errors import ConfigError, ModelError
from datafree.graph.capture import capture
from datafree.synthesis import _classes, intraq
from datafree.synthesis.intraq import (
    IntraQ,
    class_means,
    marginal_distance,
    pooled,
    soft_inception,
    soft_targets,
)
from datafree.tensors.crops import cropped
from networks import SPEC, build, captured, images, randomized
from reference import batch_norm_inputs
from watching import Watched

pytestmark = pytest.mark.integration

WHOLE: dict[str, Any] = {"crop_probability": 0.0}
BARE: dict[str, Any] = {**WHOLE, "distance_weight": 0.0, "inception_weight": 0.0}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def statistics_loss(model: nn.Module, x: Tensor) -> Tensor:
    """Mean over layers and channels of squared differences of mean and variance."""
    layers: list[Tensor] = []
    for norm, feature in batch_norm_inputs(model, x):
        channels: list[Tensor] = []
        for c, values in enumerate(feature.transpose(0, 1).flatten(1)):
            spread = ((values - values.mean()) ** 2).mean()
            gap = values.mean() - norm.running_mean[c]  # pyright: ignore
            channels.append(gap**2 + (spread - norm.running_var[c]) ** 2)  # pyright: ignore
        layers.append(torch.stack(channels).mean())
    return torch.stack(layers).mean()


def features_of(model: nn.Module, x: Tensor) -> Tensor:
    """What the last layer of Tiny reads."""
    seen: list[Tensor] = []
    handle = model.get_submodule("linear").register_forward_pre_hook(
        lambda _module, inputs: seen.append(inputs[0])
    )
    model(x)
    handle.remove()
    return seen[0]


def test_every_step_follows_the_gradient_of_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four steps, so that the running class means of three earlier ones count."""
    watched = Watched(monkeypatch)
    model = build("Tiny").requires_grad_(False)
    method = IntraQ(
        iterations=4, crop_probability=0, soft_share=0, lambda_lower=0.01, lambda_upper=0.012,
        center_momentum=0.75, distance_weight=3, inception_weight=2,
    )  # fmt: skip
    targets = method.generate(captured("Tiny"), SPEC, 12).targets
    assert targets is not None
    centers: dict[int, Tensor] = {}
    hinges: list[float] = []
    assert len(watched.images) == 4
    for pixels, gradient in zip(watched.images, watched.gradients, strict=True):
        pixels.requires_grad_()
        features, probabilities = features_of(model, pixels), F.softmax(model(pixels), 1)
        terms: list[Tensor] = []
        for n, label in enumerate(targets.tolist()):
            now = features.detach()[targets == label].mean(0)
            if n == targets.tolist().index(label):
                centers[label] = 0.75 * centers.get(label, now) + 0.25 * now
            feature, center = features[n], centers[label]
            distance = 1 - (feature @ center) / (feature.norm() * center.norm())
            hinge = (0.01 - distance).clamp(min=0) + (distance - 0.012).clamp(min=0)
            hinges.append((distance - 0.011).item())
            terms.append(3 * hinge + 2 * (probabilities[n, label] - 1) ** 2)
        loss = statistics_loss(model, pixels) + torch.stack(terms).mean()
        (expected,) = torch.autograd.grad(loss, pixels)
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)
    assert min(hinges) < 0 < max(hinges), "both hinges took part"


def test_hinges_by_hand() -> None:
    """Cosines 1, 0, 1/sqrt 2 and -1: distances 0, 1, 0.29 and 2."""
    features = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0], [-1.0, 0.0]], requires_grad=True)
    centers = torch.tensor([[5.0, 0.0]]).repeat(4, 1)
    loss = marginal_distance(features, centers, 0.1, 0.8)
    assert loss.item() == pytest.approx((0.1 + 0.2 + 0 + 1.2) / 4)
    (gradient,) = torch.autograd.grad(loss, features)
    assert torch.equal(gradient[2], torch.zeros(2)), "nothing moves inside the band"
    # Beyond the upper end: -d cos / d f / 4, at right angles to the feature.
    torch.testing.assert_close(gradient[1], torch.tensor([-1 / 2 / 4, 0.0]))


def test_soft_inception_by_hand() -> None:
    """Softmax (1/4, 3/4) and (2/3, 1/3)."""
    logits = torch.tensor([[0.0, math.log(3)], [math.log(2), 0.0]])
    loss = soft_inception(logits, torch.tensor([1, 1]), torch.tensor([1.0, 0.5]))
    assert loss.item() == pytest.approx(((1 / 4) ** 2 + (1 / 6) ** 2) / 2)


SHARES = st.floats(0, 1)


@given(count=st.integers(1, 300), share=SHARES, epsilon=SHARES, seed=st.integers(0, 9))
def test_soft_targets(count: int, share: float, epsilon: float, seed: int) -> None:
    wanted = soft_targets(count, share, epsilon, generator(seed))
    assert wanted.shape == (count,)
    assert epsilon - 1e-6 <= wanted.min() <= wanted.max() <= 1
    assert (wanted < 1).sum() <= round(share * count)


def test_half_of_the_targets_are_uniform() -> None:
    wanted = soft_targets(4000, 0.5, 0.6, generator())
    soft = wanted[wanted < 1]
    assert len(soft) == pytest.approx(2000, abs=1), "a draw of exactly 1 is possible"
    assert soft.mean().item() == pytest.approx(0.8, abs=0.01)
    assert soft.std().item() == pytest.approx(0.4 / math.sqrt(12), abs=0.005)
    assert (wanted[:2000] < 1).sum().item() == pytest.approx(1000, abs=100), "anywhere in the set"


def test_soft_targets_reach_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn once: the same at every step."""
    seen: list[Tensor] = []
    plain = intraq.soft_inception

    def spy(logits: Tensor, targets: Tensor, wanted: Tensor) -> Tensor:
        seen.append(wanted.clone())
        return plain(logits, targets, wanted)

    monkeypatch.setattr(intraq, "soft_inception", spy)
    IntraQ(iterations=3, epsilon=0.2).generate(captured("Tiny"), SPEC, 8)
    assert len(seen) == 3
    assert torch.equal(seen[0], seen[2])
    assert (seen[0] < 1).sum() == 4
    assert seen[0].min() >= 0.2


def test_class_means_by_hand() -> None:
    features = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 5.0]])
    means = class_means(features, torch.tensor([2, 2, 0]), 4)
    expected = [[5.0, 5.0], [0.0, 0.0], [2.0, 4.0], [0.0, 0.0]]
    assert torch.equal(means, torch.tensor(expected))


def test_pooled_is_the_mean_over_positions() -> None:
    x = images(2, 0, (3, 4, 5))
    torch.testing.assert_close(pooled(x, nn.Conv2d(3, 4, 1)), x.mean((2, 3)))
    torch.testing.assert_close(pooled(x, nn.Linear(5, 4)), x.mean((1, 2)))
    assert pooled(x[:, 0, 0], nn.Linear(5, 4)).equal(x[:, 0, 0])


@pytest.mark.parametrize(("probability", "least", "most"), [(0, 0, 0), (0.5, 10, 30), (1, 40, 40)])
def test_how_often_images_are_cropped(
    probability: float, least: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes: list[Tensor] = []
    flips: list[Tensor] = []

    def spy(pixels: Tensor, wanted: Tensor, mirrored: Tensor) -> Tensor:
        boxes.append(wanted)
        flips.append(mirrored.float())
        return cropped(pixels, wanted, mirrored)

    monkeypatch.setattr(_classes, "cropped", spy)
    method = IntraQ(iterations=40, crop_probability=probability, crop_scale=0.7)
    method.generate(captured("Tiny"), SPEC, 10)
    assert least <= len(boxes) <= most
    for wanted in boxes:
        assert (wanted[:, 2] * wanted[:, 3]).min() >= 0.7 - 1e-5
    if boxes:
        assert torch.stack(flips).mean().item() == pytest.approx(0.5, abs=0.15)
        assert not torch.equal(boxes[0], boxes[1])


def test_pixels_not_crops_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam's first step is ``rate * g / (|g| + 1e-8)``."""
    watched = Watched(monkeypatch)
    made = IntraQ(iterations=1, crop_probability=1, learning_rate=0.3)
    result = made.generate(captured("Tiny"), SPEC, 6).images
    (start,), (gradient,) = watched.images, watched.gradients
    expected = start - 0.3 * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)
    assert start.std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("crop_probability", [0.0, 0.5])
def test_the_statistics_approach_those_stored(crop_probability: float) -> None:
    model = build("Tiny")
    method = IntraQ(iterations=60, learning_rate=0.1, crop_probability=crop_probability)
    result = method.generate(captured("Tiny"), SPEC, 16)
    with torch.no_grad():
        start = statistics_loss(model, 3 * images(16, 1))
        assert statistics_loss(model, result.images) < 0.1 * start


def probability(model: nn.Module, result: Any) -> float:
    with torch.no_grad():
        chances = model(result.images).softmax(1)
    return chances[range(len(result.targets)), result.targets].mean().item()


def test_images_become_those_of_their_class() -> None:
    teacher, model = captured("Tiny"), build("Tiny")
    chances = [
        probability(
            model, IntraQ(iterations=60, inception_weight=w, **WHOLE).generate(teacher, SPEC, 10)
        )
        for w in (0.0, 30.0)
    ]
    assert chances[1] > chances[0] + 0.1


def test_the_values_of_imagenet_switch_the_class_terms_off() -> None:
    """(epsilon, lambda_lower, lambda_upper) = (1, 0, 2)."""
    teacher = captured("Tiny")
    off: dict[str, Any] = {"lambda_lower": 0.0, "lambda_upper": 2.0, "iterations": 5, **WHOLE}
    one = IntraQ(epsilon=1.0, **off).generate(teacher, SPEC, 6)
    same = IntraQ(epsilon=1.0, soft_share=0.0, distance_weight=0.0, iterations=5, **WHOLE)
    assert one.digest() == same.generate(teacher, SPEC, 6).digest()
    for change in ({"epsilon": 0.3}, {"lambda_lower": 1.0}, {"lambda_upper": 0.001}):
        values: dict[str, Any] = {"epsilon": 1.0, **off, **change}
        other = IntraQ(**values).generate(teacher, SPEC, 6)
        assert not torch.equal(other.images, one.images)


def test_targets_are_balanced() -> None:
    targets = IntraQ(iterations=1).generate(captured("Tiny"), SPEC, 13).targets
    assert targets is not None
    assert sorted(torch.bincount(targets, minlength=5).tolist()) == [2, 2, 3, 3, 3]


def test_the_rate_falls_when_the_loss_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = Watched(monkeypatch).rates

    def never_falling(features: Tensor, *_: Tensor) -> Tensor:
        return features.sum() * 0 + 1e9

    monkeypatch.setattr(intraq, "variance_distance", never_falling)
    method = IntraQ(iterations=12, patience=2, min_learning_rate=0.01, **WHOLE)
    method.generate(captured("Tiny"), SPEC, 2)
    assert rates == pytest.approx([0.5] * 4 + [0.05] * 3 + [0.01] * 5)


def test_networks_without_a_classifier_are_refused() -> None:
    spec = InputSpec(shape=(3, 2, 2), mean=(0.5,) * 3, std=(0.5,) * 3, classes=12)
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten())
    teacher = capture(randomized(network, images(8, shape=spec.shape)), spec)
    with pytest.raises(ModelError, match=r"intraq compares what.*use the method zeroq"):
        IntraQ(iterations=1).generate(teacher, spec, 2)


def test_a_convolution_as_classifier() -> None:
    spec = InputSpec(shape=(3, 4, 4), mean=(0.5,) * 3, std=(0.5,) * 3, classes=2)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 2), nn.Flatten()
    network = randomized(nn.Sequential(*layers), images(8, shape=spec.shape))
    teacher = capture(network, spec)
    method = IntraQ(iterations=2, lambda_lower=0.5, **WHOLE)
    near = method.generate(teacher, spec, 4).images
    assert not near.equal(method.model_copy(update=BARE).generate(teacher, spec, 4).images)


def test_defaults_are_those_of_cifar10() -> None:
    method = IntraQ()
    assert (method.epsilon, method.lambda_lower, method.lambda_upper) == (0.95, 0.05, 0.8)
    assert (method.iterations, method.batch_size, method.patience) == (1000, 256, 50)
    assert (method.learning_rate, method.crop_probability, method.crop_scale) == (0.5, 0.5, 0.5)
    assert method.soft_share == 0.5
    assert method.batch_iterations == 1000
    assert method.batch_images(captured("Tiny"), 600) == 200


@pytest.mark.parametrize(
    ("option", "value"),
    [("iterations", 0), ("batch_size", 0), ("crop_probability", 1.1), ("crop_scale", 0),
     ("lambda_lower", -0.1), ("lambda_upper", 2.1), ("center_momentum", 1), ("epsilon", 1.5),
     ("soft_share", -0.1), ("distance_weight", -1), ("inception_weight", -1)],
)  # fmt: skip
def test_options_have_bounds(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"option of intraq: {option}"):
        configure(IntraQ, {option: value}, "option of intraq")


def distance_by_hand(features: Tensor, targets: Tensor, before: list[tuple[Tensor, int]]) -> Tensor:
    """The two hinges of images whose class has finished images, over all images of the batch."""
    total = features.new_zeros(())
    for feature, target in zip(features, targets.tolist(), strict=True):
        own = [other for other, label in before if label == target]
        if own:
            center = torch.stack(own).mean(0)
            distance = 1 - (feature @ center) / feature.norm() / center.norm()
            total = total + (0.3 - distance).relu() + (distance - 0.4).relu()
    return total / len(features)


@pytest.mark.parametrize("size", [5, 3])
def test_class_means_of_finished_batches(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is constrained in the first batch, nor images of classes that have none yet."""
    watched = Watched(monkeypatch)
    model = build("Tiny").requires_grad_(False)
    method = IntraQ(
        **WHOLE, centers="batches", batch_size=size, iterations=2, inception_weight=0.0,
        lambda_lower=0.3, lambda_upper=0.4,
    )  # fmt: skip
    result = method.generate(captured("Tiny"), SPEC, 3 * size, seed=4)
    assert result.targets is not None
    before: list[tuple[Tensor, int]] = []
    constrained: list[float] = []
    for batch in range(3):
        place = slice(batch * size, (batch + 1) * size)
        targets = result.targets[place]
        for step in (2 * batch, 2 * batch + 1):
            x = watched.images[step].requires_grad_()
            distance = distance_by_hand(features_of(model, x), targets, before)
            loss = statistics_loss(model, x) + distance
            (expected,) = torch.autograd.grad(loss, x)
            torch.testing.assert_close(watched.gradients[step], expected, rtol=1e-3, atol=1e-6)
            constrained.append(distance.item())
        finished = features_of(model, result.images[place])
        before += list(zip(finished, targets.tolist(), strict=True))
    assert constrained[:2] == [0, 0]
    assert max(constrained) > 1e-3


def test_batches_read_from_disk_count_as_finished(tmp_path: Path) -> None:
    method = IntraQ(**WHOLE, centers="batches", batch_size=3, iterations=2)
    whole = method.generate(captured("Tiny"), SPEC, 9, checkpoint=tmp_path / "a")
    (tmp_path / "a" / "batch_000006.safetensors").unlink()
    again = method.generate(captured("Tiny"), SPEC, 9, checkpoint=tmp_path / "a")
    assert again.digest() == whole.digest()
    other = IntraQ(**WHOLE, batch_size=3, iterations=2).generate(captured("Tiny"), SPEC, 9)
    assert not torch.equal(other.images, whole.images)


def test_the_protocol_of_the_paper_takes_means_of_batches() -> None:
    assert IntraQ.paper_options == {"centers": "batches"}
    assert IntraQ().centers == "steps"
