"""AdaDFQ's losses against formulas written out here."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.config.outputs import Output
from datafree.errors import ModelError
from datafree.graph.taps import tap_batch_norms
from datafree.training.adadfq import AdaDFQ, band_loss
from datafree.training.base import Dream
from networks import SPEC, captured, images


def dream() -> Dream:
    teacher, x = captured("Tiny"), images(8, 1)
    with tap_batch_norms(teacher) as taps:
        logits = teacher(x)
        features = list(taps)
    return Dream(x, torch.arange(8) % 5, logits, features, [], 0, torch.Generator())


class Shifted(nn.Module):
    """The teacher's logits and something else."""

    def __init__(self, gap: Tensor) -> None:
        super().__init__()
        self.teacher, self.gap = captured("Tiny"), gap

    def forward(self, x: Tensor) -> Tensor:
        return self.teacher(x) - self.gap


def test_the_band_by_hand() -> None:
    """Entropies 0 and log 2 of two classes: scaled 0 and 1, of three images."""
    gaps = torch.tensor([[100.0, -100.0], [0.0, 0.0], [3.0, 3.0]])
    assert band_loss(gaps, 0.1, 0.8).item() == pytest.approx(0.1 / 3 + 2 * 0.2 / 3)
    assert band_loss(gaps, 0.0, 1.0).item() == pytest.approx(0, abs=1e-6)


def test_where_nothing_differs_all_are_below_the_band() -> None:
    gaps = torch.zeros(4, 5, requires_grad=True)
    found = band_loss(gaps, 0.1, 0.8)
    assert found.item() == pytest.approx(0.1)
    (slope,) = torch.autograd.grad(found, [gaps])
    assert torch.isfinite(slope).all()


def test_the_generator_s_loss() -> None:
    given = dream()
    gap = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    method = AdaDFQ(beta=2.0, gamma=0.5)
    terms = method.generator_terms(given, Shifted(gap), None)
    torch.testing.assert_close(terms["band"], band_loss(gap, 0.1, 0.8))
    picked = torch.arange(8), given.asked
    apart = -torch.log_softmax(gap, 1)[picked].mean()
    both = -torch.log_softmax(2 * given.logits - gap, 1)[picked].mean()
    torch.testing.assert_close(terms["disagreement"], 2 * 0.2 * apart)
    torch.testing.assert_close(terms["agreement"], 2 * 0.1 * both)
    rows: list[Tensor] = []
    for layer, f in given.features:
        assert layer.running_mean is not None and layer.running_var is not None
        variance = f.transpose(0, 1).flatten(1).var(1, correction=0)
        gaps = (f.mean((0, 2, 3)) - layer.running_mean).square().mean()
        rows.append(gaps + (variance - layer.running_var).square().mean())
    torch.testing.assert_close(terms["statistics"], 0.5 * torch.stack(rows).mean())


def test_gradients_go_through_the_student_to_the_images() -> None:
    given = dream()
    x = given.images.clone().requires_grad_()
    student = captured("Tiny")
    moved = Dream(x, given.labels, given.logits.detach(), [], [], 0, torch.Generator())
    terms = AdaDFQ().generator_terms(moved, student, None)
    (slope,) = torch.autograd.grad(terms["agreement"], [x])
    assert slope.abs().sum() > 0


def test_alone_the_generator_learns_as_if_the_student_were_the_teacher() -> None:
    given = dream()
    terms = AdaDFQ().generator_terms(given, None, None)
    assert set(terms) == {"disagreement", "agreement", "statistics"}
    assert terms["disagreement"].item() == pytest.approx(0.2 * math.log(5))
    torch.testing.assert_close(
        terms["agreement"], 0.1 * F.cross_entropy(2 * given.logits, given.asked)
    )


def test_the_student_s_loss_is_an_entropy_up_to_a_constant() -> None:
    given = dream()
    own = torch.randn(8, 5, generator=torch.Generator().manual_seed(2)).requires_grad_()
    found = AdaDFQ(temperature=5.0).student_terms(own, given)["disagreement"]
    p = F.softmax((given.logits - own) / 5, 1)
    entropy = -(p * p.log()).sum(1).mean()
    torch.testing.assert_close(found, 25 * (math.log(5) - entropy))
    same = AdaDFQ().student_terms(given.logits + 3.0, given)["disagreement"]
    assert same.item() == pytest.approx(0, abs=1e-3)


def test_a_network_that_tells_no_classes_is_refused() -> None:
    numbers = SPEC.model_copy(update={"outputs": (Output(name="x", shape=(5,), kind="values"),)})
    with pytest.raises(ModelError, match=r"returns none.*use dfqf"):
        AdaDFQ().remember(captured("Tiny"), numbers, torch.Generator())
