from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from datafree.losses import (
    disagreement,
    distillation,
    inception_score_loss,
    margin_loss,
    soft_cross_entropy,
)
from draws import normal


def logarithms(*rows: list[float]) -> Tensor:
    """Logits, not normalised, of the given probabilities."""
    return torch.tensor(rows, dtype=torch.float64).log() + 0.7


@pytest.mark.parametrize("alpha", [0.0, 1.0, 40.0])
@pytest.mark.parametrize("classes", [2, 10])
def test_inception_score_loss_of_known_distributions(classes: int, alpha: float) -> None:
    full = math.log(classes)
    uniform = inception_score_loss(torch.full((6, classes), 3.0), alpha)
    assert uniform.item() == pytest.approx(full - alpha * full, rel=1e-5, abs=1e-5)
    balanced = inception_score_loss(100 * torch.eye(classes), alpha)
    assert balanced.item() == pytest.approx(-alpha * full, rel=1e-5, abs=1e-5)
    one_class = inception_score_loss(100 * torch.eye(classes)[[0] * 6], alpha)
    assert one_class.item() == pytest.approx(0, abs=1e-5)


def test_inception_score_loss_by_hand() -> None:
    """Rows (1/2, 1/2) and (1/4, 3/4): mean (3/8, 5/8)."""
    logits = logarithms([0.5, 0.5], [0.25, 0.75])
    own = (math.log(2) + 0.25 * math.log(4) + 0.75 * math.log(4 / 3)) / 2
    batch = 3 / 8 * math.log(8 / 3) + 5 / 8 * math.log(8 / 5)
    for alpha in (0.0, 1.0, 40.0):
        found = inception_score_loss(logits, alpha).item()
        assert found == pytest.approx(own - alpha * batch, rel=1e-9)
    assert inception_score_loss(logits).item() == pytest.approx(own - 40 * batch, rel=1e-9)


def test_inception_score_loss_of_classes_that_never_occur() -> None:
    logits = torch.zeros(4, 3)
    logits[:, 0] = 200.0
    logits.requires_grad_()
    loss = inception_score_loss(logits)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(gradient).all()


@given(st.integers(0, 10_000), st.floats(1, 50), st.floats(0, 30))
def test_inception_score_loss_stays_in_its_range(seed: int, alpha: float, scale: float) -> None:
    logits = normal(5, 4, seed=seed).double() * scale
    loss = inception_score_loss(logits, alpha).item()
    assert -alpha * math.log(4) - 1e-9 <= loss <= alpha * 4e-8


@given(st.integers(0, 10_000), st.floats(0, 30))
def test_inception_score_loss_with_alpha_1_is_the_logarithm_of_the_score(
    seed: int, scale: float
) -> None:
    """``IS = exp(E KL(p(y|x) || p(y)))``."""
    p = torch.distributions.Categorical(logits=normal(5, 4, seed=seed).double() * scale)
    mean = torch.distributions.Categorical(probs=p.probs.mean(0))
    expected = -torch.distributions.kl_divergence(p, mean).mean()
    found = inception_score_loss(p.logits, 1.0)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-6)


def test_soft_cross_entropy_by_hand() -> None:
    student = logarithms([0.25, 0.75], [0.5, 0.5])
    teacher = logarithms([0.5, 0.5], [0.9, 0.1])
    expected = (0.5 * math.log(4) + 0.5 * math.log(4 / 3) + math.log(2)) / 2
    assert soft_cross_entropy(student, teacher).item() == pytest.approx(expected, rel=1e-9)


def test_soft_cross_entropy_is_the_divergence_and_the_teachers_entropy() -> None:
    student, teacher = normal(6, 5, seed=1).double(), 3 * normal(6, 5, seed=2).double()
    probabilities = F.softmax(teacher, 1)
    divergence = F.kl_div(F.log_softmax(student, 1), probabilities, reduction="batchmean")
    entropy = torch.distributions.Categorical(probs=probabilities).entropy().mean()
    found = soft_cross_entropy(student, teacher).item()
    assert found == pytest.approx((divergence + entropy).item(), rel=1e-9)
    assert found == pytest.approx(F.cross_entropy(student, probabilities).item(), rel=1e-9)


def test_distillation_by_hand() -> None:
    """With T = 2 the logits ``2 log p`` soften to p."""
    student = 2 * logarithms([0.25, 0.75], [0.5, 0.5])
    teacher = 2 * logarithms([0.5, 0.5], [0.5, 0.5])
    expected = 4 * (0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2
    assert distillation(student, teacher, 2.0).item() == pytest.approx(expected, rel=1e-9)
    per_element = distillation(student, teacher, 2.0, "element").item()
    assert per_element == pytest.approx(expected / 2, rel=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_distillation_is_the_kl_div_of_torch(temperature: float) -> None:
    student, teacher = 5 * normal(6, 7, seed=1).double(), 5 * normal(6, 7, seed=2).double()
    inputs = F.log_softmax(student / temperature, 1), F.softmax(teacher / temperature, 1)
    elements = temperature**2 * F.kl_div(*inputs, reduction="none")
    batch = distillation(student, teacher, temperature, "batch")
    assert batch.item() == pytest.approx(elements.sum(1).mean().item(), rel=1e-9)
    assert distillation(student, teacher, temperature).item() == batch.item()
    element = distillation(student, teacher, temperature, "element")
    assert element.item() == pytest.approx(elements.mean().item(), rel=1e-9)


def test_distillation_of_a_high_temperature_is_half_the_variance_of_the_gap() -> None:
    student, teacher = normal(6, 7, seed=1).double(), normal(6, 7, seed=2).double()
    expected = (teacher - student).var(1, correction=0).mean() / 2
    assert distillation(student, teacher, 1e4).item() == pytest.approx(expected.item(), rel=1e-3)


def test_nothing_is_detached() -> None:
    student, teacher = (normal(3, 4, seed=s).double().requires_grad_() for s in (1, 2))
    assert torch.autograd.gradcheck(soft_cross_entropy, (student, teacher))  # pyright: ignore
    assert torch.autograd.gradcheck(distillation, (student, teacher, 2.0))  # pyright: ignore
    assert torch.autograd.gradcheck(inception_score_loss, (teacher,))  # pyright: ignore
    for loss in (soft_cross_entropy(student, teacher), distillation(student, teacher)):
        assert all(g.any() for g in torch.autograd.grad(loss, (student, teacher)))


@given(st.integers(0, 10_000), st.floats(0.5, 30), st.floats(-50, 50), st.floats(-50, 50))
def test_distillation_is_a_divergence_that_ignores_shifts(
    seed: int, temperature: float, one: float, other: float
) -> None:
    student, teacher = normal(3, 4, seed=seed).double(), normal(3, 4, seed=seed + 1).double()
    found = distillation(student, teacher, temperature).item()
    assert found > 0
    assert distillation(teacher, teacher + one, temperature).item() == pytest.approx(0, abs=1e-9)
    shifted = distillation(student + one, teacher + other, temperature).item()
    assert shifted == pytest.approx(found, rel=1e-6, abs=1e-9)
    least = soft_cross_entropy(teacher, teacher).item()
    assert soft_cross_entropy(student + one, teacher + other).item() > least


def test_margin_loss_by_hand() -> None:
    """Leads of 3 and -1 where 4 is wanted; a gradient on the two logits that decide."""
    logits = torch.tensor([[5.0, 2.0, -7.0], [0.0, 1.0, 0.5]], requires_grad=True)
    loss = margin_loss(logits, torch.tensor([0, 0]), 4.0)
    assert loss.item() == pytest.approx((1 + 5) / 2)
    (gradient,) = torch.autograd.grad(loss, [logits])
    assert gradient.tolist() == [[-0.5, 0.5, 0.0], [-0.5, 0.5, 0.0]]
    assert margin_loss(logits, torch.tensor([0, 1]), 0.5).item() == 0
    single = torch.tensor([[3.0], [3.0]])
    assert margin_loss(single, torch.tensor([0, 1]), 1.0).item() == pytest.approx((0 + 4) / 2)


def test_disagreement_by_hand() -> None:
    """Softmax of a gap of 2 log 3 at T = 2: 3/4 and 1/4."""
    teacher, student = torch.tensor([[2 * math.log(3), 0.0]]), torch.zeros(1, 2)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    found = disagreement(student, teacher, 2.0)
    assert found.tolist() == pytest.approx([4 * (math.log(2) - entropy)])


def test_disagreement_of_a_high_temperature_is_half_the_variance_of_the_gap() -> None:
    """As distillation is, so that the families of methods differ by a weight (algorithms-2, 0)."""
    teacher, gap = normal(6, 100), 0.5 * normal(6, 100, seed=1)
    student = (teacher - gap).requires_grad_()
    half = 0.5 * gap.var(1, correction=0)
    found = disagreement(student, teacher, 20.0)
    torch.testing.assert_close(found, half, rtol=0.01, atol=1e-4)
    assert distillation(student, teacher, 20.0).item() == pytest.approx(
        half.mean().item(), rel=0.01
    )
    (slope,) = torch.autograd.grad(found.mean(), [student])
    centred = student - teacher - (student - teacher).mean(1, keepdim=True)
    torch.testing.assert_close(slope, centred.detach() / (100 * 6), rtol=0.1, atol=1e-4)
