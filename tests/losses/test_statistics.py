from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from datafree.losses import (
    batch_distance,
    batch_statistics,
    enhancement_weights,
    input_distance,
    kl_distance,
    sample_statistics,
    slack_distance,
    slack_margin,
    standardized_distance,
    values_distance,
    variance_distance,
)
from draws import normal


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


def layer(channels: int, seed: int = 5) -> tuple[Tensor, Tensor]:
    """Running mean and variance in float64."""
    return normal(channels, seed=seed).double(), normal(channels, seed=seed + 1).double().exp()


def divergences(features: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """(C,) divergences of the batch's normals from the layer's, by `torch.distributions`."""
    columns = features.transpose(0, 1).flatten(1)
    batch = Normal(columns.mean(1), columns.std(1))
    return kl_divergence(batch, Normal(mean, variance.sqrt()))


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (5, 3), (3, 2, 7), (2, 2, 1, 1)])
def test_kl_distance_is_that_of_torch_distributions(shape: tuple[int, ...]) -> None:
    features = normal(*shape).double() * 2 + 1
    mean, variance = layer(shape[1])
    divergence = divergences(features, mean, variance)
    found = kl_distance(features, mean, variance, "kl")
    assert found.item() == pytest.approx(divergence.mean().item(), rel=1e-9)
    constant = variance - variance * variance.log()
    expected = (2 * variance * divergence + constant).mean()
    assert kl_distance(features, mean, variance).item() == pytest.approx(expected.item(), rel=1e-9)


def test_kl_distance_by_hand() -> None:
    """Means 2 and 1, variances 2 and 8, of layers N(1, 4) and N(1, 1)."""
    features = torch.tensor([[3.0, 3.0], [1.0, -1.0]])
    mean, variance = torch.tensor([1.0, 1.0]), torch.tensor([4.0, 1.0])
    paper = (2 - 4 * math.log(2) + 1) + (8 - math.log(8))
    assert kl_distance(features, mean, variance).item() == pytest.approx(paper / 2)
    true = (math.log(2) / 2 + 3 / 8 - 1 / 2) + (-math.log(8) / 2 + 8 / 2 - 1 / 2)
    assert kl_distance(features, mean, variance, "kl").item() == pytest.approx(true / 2)


@pytest.mark.parametrize("weighting", ["paper", "kl"])
def test_kl_distance_is_least_where_the_statistics_agree(weighting: str) -> None:
    columns = normal(3, 4 * 5 * 6).double()
    columns = (columns - columns.mean(1, keepdim=True)) / columns.std(1, keepdim=True)
    mean, variance = layer(3)

    def at(shift: float, scale: float) -> tuple[float, float]:
        own = columns * variance[:, None].sqrt() * scale + mean[:, None] + shift
        features = own.view(3, 4, 5, 6).transpose(0, 1).requires_grad_()
        loss = kl_distance(features, mean, variance, weighting)  # pyright: ignore
        (gradient,) = torch.autograd.grad(loss, features)
        return loss.item(), gradient.abs().max().item()

    least, slope = at(0, 1)
    assert slope < 1e-12
    constant = (variance - variance * variance.log()).mean().item()
    assert least == pytest.approx(constant if weighting == "paper" else 0, rel=1e-9, abs=1e-12)
    for shift, scale in [(0.01, 1), (-0.01, 1), (0, 1.01), (0, 0.99), (3, 4), (0, 0.01)]:
        assert at(shift, scale)[0] > least + 1e-6


def test_kl_distance_in_the_weighting_of_the_paper_may_be_negative() -> None:
    wide = torch.tensor([[20.0], [-20.0]])
    assert kl_distance(wide, torch.zeros(1), torch.tensor([800.0])).item() < -4000


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1)])
def test_kl_distance_of_single_values_is_that_of_the_means(shape: tuple[int, ...]) -> None:
    features = normal(*shape).double()
    mean, variance = layer(3)
    gaps = (features.flatten() - mean) ** 2
    paper = kl_distance(features, mean, variance)
    assert paper.item() == pytest.approx(gaps.mean().item())
    true = kl_distance(features, mean, variance, "kl")
    assert true.item() == pytest.approx((gaps / (2 * variance)).mean().item())


@pytest.mark.parametrize("weighting", ["paper", "kl"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 2), (4, 3), (1, 3)])
def test_gradients_of_kl_distance_are_those_of_finite_differences(
    shape: tuple[int, ...], weighting: str
) -> None:
    features = normal(*shape).double().requires_grad_()
    mean, variance = layer(3)

    def loss(x: Tensor) -> Tensor:
        return kl_distance(x, mean, variance, weighting)  # pyright: ignore

    assert torch.autograd.gradcheck(loss, (features,))  # pyright: ignore


@pytest.mark.parametrize("weighting", ["paper", "kl"])
def test_kl_distance_of_channels_that_do_not_vary(weighting: str) -> None:
    features = torch.full((2, 2, 3, 3), 0.5, requires_grad=True)
    variance = torch.tensor([0.0, 1.0])
    loss = kl_distance(features, torch.tensor([0.5, 0.0]), variance, weighting)  # pyright: ignore
    (gradient,) = torch.autograd.grad(loss, features)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
    assert (gradient[:, 1] > 0).all()


@given(st.integers(0, 10_000), st.floats(-3, 3), st.floats(0.05, 20))
def test_kl_distance_is_a_divergence_and_does_not_depend_on_units(
    seed: int, shift: float, scale: float
) -> None:
    features = normal(3, 2, 4, seed=seed).double()
    mean, variance = layer(2, seed + 1)
    found = kl_distance(features, mean, variance, "kl").item()
    assert found >= -1e-12
    other = kl_distance(features * scale + shift, mean * scale + shift, variance * scale**2, "kl")
    assert other.item() == pytest.approx(found, rel=1e-6, abs=1e-9)


def test_standardized_distance_has_no_unit() -> None:
    features = normal(4, 2, 5, 5)
    mean, std = torch.tensor([0.1, -0.2]), torch.tensor([2.0, 0.5])
    found = standardized_distance(features, mean, std)
    assert found > 0
    scaled = standardized_distance(7 * features, 7 * mean, 7 * std)
    assert scaled.item() == pytest.approx(found.item(), rel=1e-4)
    own = batch_statistics(features)
    assert own[1] is not None
    assert standardized_distance(features, own[0], own[1]).item() == pytest.approx(0, abs=1e-9)
    assert standardized_distance(torch.ones(1, 2), mean, std).item() == pytest.approx(
        (((1 - mean) / std) ** 2).mean().item()
    )


def test_values_are_standardised_over_what_there_is_most_of() -> None:
    random = torch.Generator().manual_seed(3)
    series = torch.randn(4, 3, 9, generator=random)  # over positions, a loss for each item
    mean, std = series.mean(2), (series.var(2) + 1e-6).sqrt()
    assert torch.allclose(values_distance(series), (mean**2 + (std - 1) ** 2).sum(1), rtol=1e-4)
    vectors = torch.randn(4, 3, generator=random)  # over items, one loss
    mean, std = vectors.mean(0), (vectors.var(0) + 1e-6).sqrt()
    found = values_distance(vectors)
    assert found.shape == (1,)
    assert torch.allclose(found, (mean**2 + (std - 1) ** 2).sum(), rtol=1e-4)
    (one,) = vectors[:1]  # over channels
    expected = one.mean() ** 2 + ((one.var() + 1e-6).sqrt() - 1) ** 2
    assert torch.allclose(values_distance(vectors[:1]), expected, rtol=1e-4)
