from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from datafree.losses import (
    batch_distance,
    batch_statistics,
    clipped_normal_mean,
    enhancement_weights,
    gradient_diversity,
    gradient_matching,
    gradient_similarity,
    image_norm,
    input_distance,
    sample_statistics,
    slack_distance,
    slack_margin,
    total_variation,
    variance_distance,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 2, 1, 2), (3, 2, 7), (2, 2, 2, 3, 4)])
def test_sample_statistics_are_those_of_numpy(shape: tuple[int, ...]) -> None:
    features = normal(*shape) * 3 + 1
    mean, std = sample_statistics(features)
    rows = features.double().numpy().reshape(shape[0], shape[1], -1)
    assert std is not None
    assert mean.shape == std.shape == shape[:2]
    np.testing.assert_allclose(mean, rows.mean(2), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(std, np.sqrt(rows.var(2, ddof=1) + 1e-6), rtol=1e-5)


def test_sample_statistics_of_a_channels_last_batch() -> None:
    features = normal(2, 3, 4, 5)
    expected = sample_statistics(features)
    actual = sample_statistics(features.to(memory_format=torch.channels_last))
    for one, other in zip(expected, actual, strict=True):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 1, 1), (4, 3, 1)])
def test_a_single_value_has_no_deviation(shape: tuple[int, ...]) -> None:
    features = normal(*shape)
    mean, std = sample_statistics(features)
    assert std is None
    assert torch.equal(mean, features.view(4, 3))


def test_gradients_of_the_statistics_are_those_of_finite_differences() -> None:
    features = normal(2, 3, 4, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(sample_statistics, (features,))  # pyright: ignore


def test_constant_features_have_finite_gradients() -> None:
    features = torch.full((1, 2, 4, 4), 3.0, requires_grad=True)
    _, std = sample_statistics(features)
    assert std is not None
    (gradient,) = torch.autograd.grad(std.sum(), features)
    assert torch.isfinite(gradient).all()
    assert std.flatten().tolist() == pytest.approx([1e-3, 1e-3])


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 2, 1, 2), (3, 2, 7), (5, 3), (2, 2, 1, 1)])
@pytest.mark.parametrize("last", [False, True])
def test_batch_statistics_are_those_of_numpy(shape: tuple[int, ...], last: bool) -> None:
    features = normal(*shape) * 3 + 1
    if last and len(shape) == 4:
        features = features.to(memory_format=torch.channels_last)
    mean, std = batch_statistics(features)
    columns = features.double().numpy().swapaxes(0, 1).reshape(shape[1], -1)
    assert std is not None
    assert mean.shape == std.shape == shape[1:2]
    np.testing.assert_allclose(mean, columns.mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(std, np.sqrt(columns.var(1, ddof=1) + 1e-6), rtol=1e-5)


def test_batch_statistics_of_many_values_far_from_zero() -> None:
    """Rounding errors of float32 do not add up over a quarter of a million values."""
    features = (normal(64, 2, 64, 64) + 100).to(memory_format=torch.channels_last)
    mean, std = batch_statistics(features)
    columns = features.double().numpy().swapaxes(0, 1).reshape(2, -1)
    assert std is not None
    np.testing.assert_allclose(mean, columns.mean(1), rtol=1e-6)
    np.testing.assert_allclose(std, columns.std(1, ddof=1), rtol=1e-4)


def test_samples_that_differ_count_in_batch_statistics_only() -> None:
    features = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    _, within = sample_statistics(features)
    mean, std = batch_statistics(features)
    assert within is not None
    assert std is not None
    assert within.flatten().tolist() == pytest.approx([1e-3, 1e-3])
    assert mean.tolist() == [2]
    assert std.tolist() == pytest.approx([math.sqrt(32 / 31 + 1e-6)])


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1), (1, 3, 1)])
def test_a_batch_of_a_single_value_has_no_deviation(shape: tuple[int, ...]) -> None:
    features = normal(*shape)
    mean, std = batch_statistics(features)
    assert std is None
    assert torch.equal(mean, features.flatten())
    target = normal(3, seed=1)
    expected = ((features.flatten() - target) ** 2).mean()
    actual = batch_distance(features, target, torch.ones(3))
    assert actual.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("shape", [(2, 3, 4, 2), (4, 3)])
def test_gradients_of_batch_statistics_are_those_of_finite_differences(
    shape: tuple[int, ...],
) -> None:
    features = normal(*shape).double().requires_grad_()
    assert torch.autograd.gradcheck(batch_statistics, (features,))  # pyright: ignore


def test_batch_distance_by_hand() -> None:
    features = torch.tensor([[3.0, 0.0], [1.0, 0.0]])  # means 2 and 0, variances 2 and 0
    mean, std = torch.tensor([0.5, 1.0]), torch.tensor([1.0, 0.5])
    expected = (1.5**2 + 1) / 2 + ((math.sqrt(2 + 1e-6) - 1) ** 2 + (1e-3 - 0.5) ** 2) / 2
    assert batch_distance(features, mean, std).item() == pytest.approx(expected, rel=1e-6)


def test_slack_distance_by_hand() -> None:
    statistic = torch.tensor([[1.0, -2.0, 0.25], [0.0, 0.0, 4.0]])
    target = torch.tensor([0.0, 1.0, 0.0])
    # gaps 1, 3, 0.25 and 0, 1, 4; minus 0.5: 0.5, 2.5, 0 and 0, 0.5, 3.5
    assert slack_distance(statistic, target, 0.5).tolist() == [0.25 + 6.25, 0.25 + 12.25]
    assert slack_distance(statistic, target).tolist() == [1 + 9 + 0.0625, 0 + 1 + 16]


def test_nothing_inside_the_band() -> None:
    target = normal(6, seed=1)
    margin = torch.tensor(0.3)
    offsets = torch.tensor([-0.299, -0.1, 0.0, 1e-4, 0.2, 0.299])
    statistic = (target + offsets).expand(4, 6).clone().requires_grad_()
    loss = slack_distance(statistic, target, margin)
    (gradient,) = torch.autograd.grad(loss.sum(), statistic)
    assert loss.tolist() == [0, 0, 0, 0]
    assert not gradient.any()


def test_gradient_outside_the_band_points_to_its_edge() -> None:
    statistic = torch.tensor([[1.5, -0.75, 0.1]], requires_grad=True)
    loss = slack_distance(statistic, torch.zeros(3), 0.25)
    (gradient,) = torch.autograd.grad(loss.sum(), statistic)
    assert gradient.tolist() == [[2 * 1.25, -2 * 0.5, 0]]


@pytest.mark.parametrize("layers", [1, 2, 19, 20])
def test_enhancement_columns_sum_to_n_plus_one(layers: int) -> None:
    weights = enhancement_weights(layers, layers)
    assert torch.equal(weights, torch.ones(layers, layers) + torch.eye(layers))
    assert weights.sum(0).tolist() == [layers + 1] * layers


@pytest.mark.parametrize(
    ("layers", "batch", "offset"), [(5, 3, 0), (5, 3, 3), (3, 8, 0), (4, 4, 7)]
)
def test_enhancement_of_any_batch(layers: int, batch: int, offset: int) -> None:
    weights = enhancement_weights(layers, batch, offset)
    assert weights.shape == (layers, batch)
    for layer, sample in itertools.product(range(layers), range(batch)):
        chosen = (offset + sample) % layers == layer
        assert weights[layer, sample] == (2 if chosen else 1)


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 7, 12])
def test_batches_in_a_row_enhance_every_layer_equally(batch: int) -> None:
    layers, count = 7, 7 * 12
    extra = torch.zeros(layers)
    for start in range(0, count, batch):
        extra += (enhancement_weights(layers, min(batch, count - start), start) - 1).sum(1)
    assert extra.tolist() == [count / layers] * layers


@pytest.mark.parametrize("epsilon", [0.001, 0.1, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("shape", [(1,), (2,), (10, 3), (1024, 4)])
def test_margin_is_the_quantile(shape: tuple[int, ...], epsilon: float) -> None:
    gaps = normal(*shape).abs()
    margin = slack_margin(gaps, epsilon)
    assert margin.ndim == 0
    assert margin.item() == pytest.approx(np.quantile(gaps.numpy(), epsilon), rel=1e-5)


def test_margin_is_zero_without_slack_and_grows_with_epsilon() -> None:
    gaps = normal(50, 7).abs() + 0.1
    margins = [slack_margin(gaps, epsilon / 20).item() for epsilon in range(21)]
    assert margins[0] == 0
    assert margins[1] >= 0.1
    assert margins == sorted(margins)
    assert margins[-1] == gaps.max()


def test_input_distance_by_hand() -> None:
    image = torch.tensor([[[[3.0, 1.0], [1.0, 3.0]]]])  # mean 2, unbiased variance 4/3
    expected = 2**2 + (math.sqrt(4 / 3 + 1e-6) - 1) ** 2
    assert input_distance(image).tolist() == pytest.approx([expected])


def test_input_distance_of_normal_images_is_about_zero() -> None:
    """E = C (1/n + 1/2n) for n pixels per channel: 3 * 1.5 / 4096."""
    assert input_distance(normal(8, 3, 64, 64)).mean() == pytest.approx(4.5 / 4096, rel=0.6)
    assert input_distance(normal(8, 3, 64, 64) * 2 + 1).mean() > 5


def test_input_distance_of_single_pixels() -> None:
    assert input_distance(torch.tensor([[[[2.0]], [[1.0]]]])).tolist() == [5]


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


def test_variance_distance_by_hand() -> None:
    """Channel 0: values 1, 3, 5, 7 (mean 4, variance 5); channel 1: four times 2."""
    features = torch.tensor([[[1.0, 3.0], [2.0, 2.0]], [[5.0, 7.0], [2.0, 2.0]]])
    mean, variance = torch.tensor([1.0, 2.5]), torch.tensor([4.0, 0.5])
    expected = (3.0**2 + 0.5**2 + 1.0**2 + 0.5**2) / 2
    assert variance_distance(features, mean, variance).item() == pytest.approx(expected)


def test_variance_distance_of_single_values_is_that_of_the_means() -> None:
    mean, variance = torch.tensor([1.0, 2.0]), torch.tensor([9.0, 9.0])
    for shape in ((1, 2), (1, 2, 1, 1)):
        actual = variance_distance(torch.tensor([[3.0, 2.0]]).view(shape), mean, variance)
        assert actual.item() == pytest.approx(4 / 2)
