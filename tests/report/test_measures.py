"""Measures of sets of images, against scipy and scikit-learn and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.decomposition import PCA

from datafree.report.measures import (
    density,
    distance_to_normal,
    effective_rank,
    projected,
    similarity,
    variance_of_statistics,
)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (2.0, 0.5), (-3.0, 4.0)])
def test_the_distance_is_scipys_wasserstein_distance_in_deviations(mean: float, std: float) -> None:
    values = torch.randn(3, 500) * 1.3 + 0.7
    found = distance_to_normal(values, torch.full((3,), mean), torch.full((3,), std))
    quantiles = stats.norm(mean, std).ppf((np.arange(500) + 0.5) / 500)
    for row, one in zip(values.numpy(), found, strict=True):
        assert float(one) == pytest.approx(stats.wasserstein_distance(row, quantiles) / std, 1e-4)


def test_a_shifted_normal_is_as_far_as_it_is_shifted() -> None:
    values = 1.5 + torch.randn(1, 200_000)
    assert float(distance_to_normal(values, torch.zeros(1), torch.ones(1))) == pytest.approx(
        1.5, abs=0.02
    )


def test_the_variance_of_statistics_is_zero_for_one_image_many_times() -> None:
    means, stds = torch.tensor([[1.0, 2.0]] * 5), torch.tensor([[0.5, 0.1]] * 5)
    assert variance_of_statistics(means, stds, torch.ones(2)).tolist() == [0.0, 0.0]


def test_the_variance_of_statistics_adds_both_and_has_no_unit() -> None:
    means, stds = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [5.0]])
    assert variance_of_statistics(means, stds, torch.tensor([2.0])).tolist() == [(1 + 4) / 4]
    assert variance_of_statistics(means, None, torch.tensor([2.0])).tolist() == [1 / 4]


def test_the_projection_is_that_of_a_principal_component_analysis() -> None:
    sets = [torch.randn(20, 3, 4) @ torch.randn(4, 4), torch.randn(15, 3, 4) + 1]
    found, shares = projected(sets)
    rows = torch.cat([one.flatten(1) for one in sets]).numpy()
    analysis = PCA(2).fit(rows)
    expected = analysis.transform(rows)
    expected = expected / expected.std(0)
    for axis in range(2):
        mine = torch.cat(found)[:, axis].numpy()
        assert abs(np.corrcoef(mine, expected[:, axis])[0, 1]) == pytest.approx(1, abs=1e-6)
        assert np.abs(mine) == pytest.approx(np.abs(expected[:, axis]), abs=1e-4)
    assert shares == pytest.approx(tuple(analysis.explained_variance_ratio_), abs=1e-6)
    assert [len(one) for one in found] == [20, 15]


def test_the_density_is_the_largest_of_scipys_kernel_density_on_the_same_grid() -> None:
    points = torch.randn(60, 2) @ torch.tensor([[1.0, 0.4], [0.0, 0.7]])
    kernel = stats.gaussian_kde(points.numpy().T)
    low, high = points.amin(0), points.amax(0)
    axes = [np.linspace(float(a), float(b), 200) for a, b in zip(low, high, strict=True)]
    grid = np.stack([one.ravel() for one in np.meshgrid(*axes)])
    assert density(points) == pytest.approx(60 * kernel(grid).max(), rel=1e-4)


def test_points_in_a_cluster_are_denser_and_on_a_line_have_no_density() -> None:
    points = torch.randn(50, 2)
    assert density(0.1 * points) > 50 * density(points)
    assert math.isnan(density(torch.arange(6.0).view(3, 2)))
    assert math.isnan(density(points[:2]))


def test_the_similarity_is_the_mean_cosine_of_two_different_rows() -> None:
    rows = torch.randn(7, 2, 5)
    unit = torch.nn.functional.normalize(rows.flatten(1), dim=1)
    cosines = [float(unit[i] @ unit[j]) for i in range(7) for j in range(7) if i != j]
    assert similarity(rows) == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)
    assert similarity(torch.ones(4, 3)) == pytest.approx(1)
    assert math.isnan(similarity(torch.ones(1, 3)))


def test_the_effective_rank_counts_directions() -> None:
    assert effective_rank(torch.ones(6, 4)) == pytest.approx(1)
    assert effective_rank(torch.eye(4)) == pytest.approx(4)
    assert effective_rank(torch.cat((torch.eye(4)[:2],) * 3)) == pytest.approx(2)
