"""DFQF's losses and its random students."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from datafree.calibrators.bounded_mse import BoundedMSE
from datafree.calibrators.mse import MSE
from datafree.graph.taps import batch_norms, tap_batch_norms
from datafree.training.base import Dream, Task
from datafree.training.dfqf import DFQF, forgotten
from datafree.training.distill import Distill
from networks import SPEC, captured, images


def dream() -> tuple[Dream, nn.Module]:
    teacher = captured("Tiny")
    x = images(8, 1).requires_grad_()
    with tap_batch_norms(teacher) as taps:
        logits = teacher(x)
        features = list(taps)
    return Dream(x, None, logits, features, [], 0, torch.Generator()), teacher


def test_the_generator_s_loss_is_the_weighted_sum_of_the_paper() -> None:
    given, _ = dream()
    student = captured("Functional")
    terms = DFQF(adversarial="cross_entropy").generator_terms(given, student, None)
    p = F.softmax(given.logits, 1)
    score = -(p * (p.log() - 40 * p.mean(0).log())).sum(1).mean()
    torch.testing.assert_close(terms["inception score"], score)
    statistics = torch.zeros(())
    for layer, f in given.features:
        mean, variance = f.mean((0, 2, 3)), f.transpose(0, 1).flatten(1).var(1)
        assert layer.running_mean is not None and layer.running_var is not None
        gap = (mean - layer.running_mean).square()
        statistics = statistics + (variance - layer.running_var * variance.log() + gap).mean()
    torch.testing.assert_close(terms["statistics"], 0.1 * statistics)
    unknown = -(p * F.log_softmax(student(given.images), 1)).sum(1).mean()
    torch.testing.assert_close(terms["adversarial"], -5 * unknown)


def test_the_divergence_leaves_the_teacher_s_entropy_out() -> None:
    given, _ = dream()
    student = captured("Functional")
    paper = DFQF(adversarial="cross_entropy").generator_terms(given, student, None)["adversarial"]
    code = DFQF().generator_terms(given, student, None)["adversarial"]
    entropy = torch.distributions.Categorical(logits=given.logits).entropy().mean()
    torch.testing.assert_close(code, paper + 5 * entropy)


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"inception_weight": 0.0}, {"statistics", "adversarial"}),
        ({"beta": 0.0}, {"inception score", "adversarial"}),
        ({"gamma": 0.0}, {"inception score", "statistics"}),
    ],
)
def test_terms_of_weight_zero_are_left_out(options: dict[str, Any], left: set[str]) -> None:
    given, teacher = dream()
    assert set(DFQF(**options).generator_terms(given, teacher, None)) == left


def test_no_float_network_learns_where_no_term_asks_it() -> None:
    teacher = captured("Tiny")
    task = Task(teacher, teacher, SPEC, None, MSE())
    assert DFQF().learner(task) is not None
    assert DFQF(gamma=0.0).learner(task) is None
    assert DFQF(gamma=0.0).passes() < DFQF().passes()
    assert Distill(gamma=0.0).learner(task) is not None
    assert Distill(gamma=0.0).passes() == Distill().passes()


def test_a_network_without_batch_norms_needs_no_statistics() -> None:
    given, teacher = dream()
    bare = Dream(given.images, None, given.logits, [], [], 0, given.random)
    assert "statistics" not in DFQF().generator_terms(bare, teacher, None)
    DFQF().check(nn.Linear(2, 2))


def test_a_forgotten_network_is_random_in_every_layer_and_the_old_one_is_not_touched() -> None:
    teacher = captured("Tiny")
    before = {n: p.clone() for n, p in teacher.state_dict().items()}
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    one, two, other = forgotten(teacher, 7), forgotten(teacher, 7), forgotten(teacher, 8)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name])
    for name, value in one.named_parameters():
        assert torch.equal(value, two.get_parameter(name))
        if "bn" not in name:
            assert not torch.equal(value, before[name])
            assert not torch.equal(value, other.get_parameter(name))
    for layer in batch_norms(one).values():
        assert layer.running_mean is not None and not layer.running_mean.any()


def test_ranges_start_from_the_bounded_rule() -> None:
    assert DFQF(lower_bound=0.4).calibrator(MSE()) == BoundedMSE(lower_bound=0.4)


@pytest.mark.parametrize(
    ("name", "fraction", "tuning", "factor"),
    [
        ("generator", 0.9, False, 1.0),
        ("student", 0.39, False, 1.0),
        ("student", 0.4, False, 0.1),
        ("student", 0.8, False, 0.01),
        ("student", 0.9, True, 1.0),
        ("steps", 0.9, True, 1.0),
    ],
)
def test_rates(name: str, fraction: float, tuning: bool, factor: float) -> None:
    assert DFQF().rate(name, fraction, tuning=tuning) == pytest.approx(factor)
