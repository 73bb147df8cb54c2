from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from datafree.losses import correlation_inhibition
from draws import normal

MODES = ("eigvals", "eigvecs_detached", "full")
STRUCTURE = MODES[1:]


def inhibition(features: Tensor, reference: Tensor, mode: str) -> Tensor:
    return correlation_inhibition(features, reference, mode)  # pyright: ignore


def gradient(features: Tensor, reference: Tensor, mode: str) -> Tensor:
    features = features.clone().requires_grad_()
    return torch.autograd.grad(inhibition(features, reference, mode), features)[0]


def decomposed(features: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Ascending eigenvalues and eigenvectors of the kernel, by numpy."""
    rows = features.reshape(len(features), -1)
    rows = rows / np.sqrt((rows**2).sum(1, keepdims=True))
    return np.linalg.eigh(rows @ rows.T)


def by_numpy(features: Tensor, reference: Tensor, structure: bool) -> float:
    """Eq. (9) eigenpair by eigenpair."""
    values, vectors = decomposed(features.double().numpy())
    other_values, other_vectors = decomposed(reference.double().numpy())
    total = 0.0
    for i in range(len(values)):
        total += abs(values[i] - other_values[i])
        if structure:
            weight = (values[i] - values.min()) / (values.max() - values.min() + 1e-12)
            total -= weight * abs(vectors[:, i] @ other_vectors[:, i])
    return max(total, 0.0)


def slopes(function: Callable[[NDArray[Any]], float], x: NDArray[Any]) -> NDArray[Any]:
    """Central differences."""
    found = np.empty_like(x)
    for place in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[place] = 1e-6
        found[place] = (function(x + step) - function(x - step)) / 2e-6
    return found


def pair(cosine: float, scale: float = 1.0) -> Tensor:
    """Two samples of the given cosine, as (2, 1, 1, 2) maps."""
    rows = [[1.0, 0.0], [scale * cosine, scale * math.sqrt(1 - cosine**2)]]
    return torch.tensor(rows, dtype=torch.float64).view(2, 1, 1, 2)


def separated() -> tuple[Tensor, Tensor]:
    """Correlated features and a reference whose kernels have no close eigenvalues."""
    features = normal(4, 2, 3, seed=1).double() + 2 * normal(1, 2, 3, seed=2).double()
    reference = normal(4, 2, 3, seed=3).double()
    for x in (features, reference):
        assert np.diff(decomposed(x.numpy())[0]).min() > 0.02
    return features, reference


@pytest.mark.parametrize("shape", [(2, 3), (5, 4, 3, 3), (8, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_is_that_of_numpy(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    features = (normal(*shape, seed=1) + 1.5 * normal(*shape[1:], seed=2)).to(dtype)
    reference = normal(*shape, seed=3).to(dtype)
    for mode in MODES:
        found = inhibition(features, reference, mode)
        expected = by_numpy(features, reference, mode != "eigvals")
        assert found.dtype == dtype
        assert found.ndim == 0
        assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("batch", [2, 3, 7])
def test_identical_features_against_orthogonal_vectors(batch: int) -> None:
    """Eigenvalues (0, …, 0, B) against ones: ``2 (B - 1)``, less one cosine at the most."""
    features = normal(1, 3, 4, 4).expand(batch, 3, 4, 4)
    reference = torch.eye(batch, 48).view(batch, 3, 4, 4)
    alone = inhibition(features, reference, "eigvals").item()
    assert alone == pytest.approx(2 * (batch - 1), rel=1e-5)
    for mode in STRUCTURE:
        assert alone - 1 - 1e-5 <= inhibition(features, reference, mode).item() <= alone + 1e-5


def test_pairs_by_hand() -> None:
    """Kernels [[1, c], [c, 1]]: eigenvalues 1 - |c| and 1 + |c|, vectors (1, ±1) / sqrt 2."""
    for one, other in [(0.9, 0.2), (0.9, 0.8), (0.1, 0.7), (0.9, -0.2), (-0.9, -0.2)]:
        features, reference = pair(one, scale=7.0), pair(other)
        apart = 2 * abs(abs(one) - abs(other))
        alike = 1 if one * other > 0 else 0  # the larger eigenvalue's vectors; its weight is 1
        assert inhibition(features, reference, "eigvals").item() == pytest.approx(apart)
        for mode in STRUCTURE:
            found = inhibition(features, reference, mode).item()
            assert found == pytest.approx(max(apart - alike, 0), abs=1e-9)


def test_no_gradient_where_the_maximum_is_zero() -> None:
    features, reference = pair(0.9), pair(0.8)
    for mode in STRUCTURE:
        assert not gradient(features, reference, mode).any()
    assert gradient(features, reference, "eigvals").any()


def test_orthogonal_features_are_as_unlike_as_an_orthogonal_reference() -> None:
    features, reference = torch.eye(4, 9), torch.eye(4, 9).flip(1) * 3
    for mode in MODES:
        assert inhibition(features, reference, mode).item() == pytest.approx(0, abs=1e-6)


def test_orthogonal_features_are_as_far_from_the_reference_as_it_is_from_the_identity() -> None:
    reference = normal(4, 9)
    expected = np.abs(decomposed(reference.double().numpy())[0] - 1).sum()
    found = inhibition(torch.eye(4, 9), reference, "eigvals").item()
    assert found == pytest.approx(expected, rel=1e-5)


def test_independent_normal_features_cost_little() -> None:
    features, reference = normal(16, 3, 64, 64, seed=1), normal(16, 3, 64, 64, seed=2)
    same = normal(1, 3, 64, 64, seed=3)
    assert inhibition(features, reference, "eigvals").item() < 0.2
    for mode in STRUCTURE:
        assert inhibition(features, reference, mode).item() < 0.2
    for mode in MODES:
        one = inhibition(features, reference, mode).item()
        alike = inhibition(features + same, reference, mode).item()
        assert alike > one + 5


def test_a_step_against_the_gradient_makes_samples_less_alike() -> None:
    features = normal(6, 40, seed=1) * 0.5 + normal(1, 40, seed=2)
    reference = normal(6, 40, seed=3)
    for mode in MODES:
        moved = features - 0.05 * gradient(features, reference, mode)
        for measure in MODES:
            before = inhibition(features, reference, measure).item()
            assert inhibition(moved, reference, measure).item() < before


def degenerate() -> dict[str, Tensor]:
    """Six samples each whose kernels have eigenvalues that coincide, or nearly so."""
    same = normal(1, 24, seed=4)
    noise = 1e-9 * normal(6, 24, seed=5)
    return {
        "identical": same.repeat(6, 1),
        "nearly identical": same + 1e3 * noise,
        "opposite": same * torch.tensor([[1.0], [-1.0]]).repeat(3, 1),
        "orthogonal": torch.eye(6, 24),
        "nearly orthogonal": torch.eye(6, 24) + noise,
        "three alike": torch.eye(6, 24)[[0, 0, 0, 1, 2, 3]] + noise,  # 0, 0, 1, 1, 1, 3
        "zeros": normal(6, 24, seed=6) * torch.tensor([[1.0], [0.0]]).repeat(3, 1),
        "two groups": normal(2, 24, seed=7)[[0, 0, 1, 1, 1, 1]],
        "few dimensions": normal(6, 2, seed=8).repeat(1, 12),
    }


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", degenerate())
def test_gradients_of_degenerate_kernels_are_finite(
    kind: str, dtype: torch.dtype, mode: str
) -> None:
    features = degenerate()[kind].to(dtype)
    for reference in (normal(*features.shape, seed=9), torch.eye(6, 24)):
        found = gradient(features, reference.to(dtype), mode)
        assert torch.isfinite(found).all()
        # The cap of 1 / D is 5000, that of the weights' slope 10000; rows are longer than 0.1.
        assert found.abs().max() < 1e5


def test_equal_samples_stay_equal() -> None:
    features, reference = degenerate()["identical"], normal(6, 24, seed=9)
    for mode in MODES:
        assert gradient(features, reference, mode).abs().max() < 1e-6


def test_gradient_of_a_sample_alone() -> None:
    """A sample does not depend on its length, so the gradient is at right angles to it."""
    features, reference = separated()
    for mode in MODES:
        found = gradient(features, reference, mode)
        assert found.abs().max() > 0.01
        along = (found * features).flatten(1).sum(1)
        assert along.abs().max() < 1e-6 * found.abs().max()


def test_gradient_of_eigenvalues_is_that_of_finite_differences() -> None:
    features, reference = separated()
    expected = slopes(
        lambda x: by_numpy(torch.from_numpy(x), reference, structure=False), features.numpy()
    )
    found = gradient(features, reference, "eigvals")
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
    # torch's own gradient of `eigvalsh`
    own = features.clone().requires_grad_()
    unit = torch.nn.functional.normalize(own.flatten(1))
    target = torch.from_numpy(decomposed(reference.numpy())[0])
    loss = (torch.linalg.eigvalsh(unit @ unit.T) - target).abs().sum()
    torch.testing.assert_close(found, torch.autograd.grad(loss, own)[0])


def test_full_gradient_is_that_of_finite_differences() -> None:
    features, reference = separated()
    expected = slopes(
        lambda x: by_numpy(torch.from_numpy(x), reference, structure=True), features.numpy()
    )
    assert by_numpy(features, reference, structure=True) > 0.1
    found = gradient(features, reference, "full")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_gradient_with_detached_eigenvectors_holds_the_cosines() -> None:
    features, reference = separated()
    other_values, other_vectors = decomposed(reference.numpy())
    cosines = np.abs((decomposed(features.numpy())[1] * other_vectors).sum(0))

    def held(x: NDArray[Any]) -> float:
        values = decomposed(x)[0]
        weights = (values - values[0]) / (values[-1] - values[0])
        return float(np.abs(values - other_values).sum() - (weights * cosines).sum())

    expected = slopes(held, features.numpy())
    found = gradient(features, reference, "eigvecs_detached")
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
    others = [gradient(features, reference, mode) for mode in ("eigvals", "full")]
    assert all(not torch.allclose(found, other, rtol=1e-2) for other in others)


def test_no_gradient_for_the_reference() -> None:
    features, reference = separated()
    features.requires_grad_()
    reference.requires_grad_()
    for mode in MODES:
        loss = inhibition(features, reference, mode)
        assert torch.autograd.grad(loss, reference, allow_unused=True) == (None,)


@pytest.mark.parametrize("mode", MODES)
def test_unusable_batches_are_refused(mode: str) -> None:
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        inhibition(normal(1, 4), normal(1, 4), mode)
    with pytest.raises(ValueError, match="reference is"):
        inhibition(normal(3, 4), normal(3, 5), mode)


@given(
    st.integers(0, 10_000),
    st.integers(2, 6),
    st.integers(1, 9),
    st.floats(0, 3),
)
def test_range_and_symmetries(seed: int, batch: int, width: int, common: float) -> None:
    features = normal(batch, width, seed=seed).double()
    features = features + common * normal(1, width, seed=seed + 1).double()
    reference = normal(batch, width, seed=seed + 2).double()
    alone = inhibition(features, reference, "eigvals").item()
    assert 0 <= alone <= 2 * (batch - 1) + 1e-9
    both = [inhibition(features, reference, mode).item() for mode in STRUCTURE]
    assert both[0] == both[1]
    assert 0 <= both[0] <= alone

    lengths = normal(batch, 1, seed=seed + 3).double().exp()
    turn = torch.linalg.qr(normal(width, width, seed=seed + 4).double())[0]
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(seed))
    same = inhibition((-features * lengths @ turn)[order], 5 * reference, "eigvals").item()
    assert same == pytest.approx(alone, abs=1e-6)
