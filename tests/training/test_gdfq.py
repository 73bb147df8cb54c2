"""GDFQ's losses against independent formulas."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F

from datafree.config import InputSpec
from datafree.errors import ConfigError, ModelError
from datafree.graph.taps import tap_batch_norms
from datafree.training.base import Dream
from datafree.training.gdfq import GDFQ
from networks import captured, images


def dream(labels: torch.Tensor | None = None) -> Dream:
    teacher = captured("Tiny")
    x = images(8, 1)
    with tap_batch_norms(teacher) as taps:
        logits = teacher(x)
        features = list(taps)
    asked = torch.arange(8) % 5 if labels is None else labels
    return Dream(x, asked, logits, features, [], 0, torch.Generator())


def test_the_generator_s_loss() -> None:
    given = dream()
    terms = GDFQ(statistics_weight=0.3).generator_terms(given, None, None)
    asked = given.asked
    own = -torch.log_softmax(given.logits, 1)[torch.arange(8), asked].mean()
    torch.testing.assert_close(terms["classes"], own)
    rows: list[torch.Tensor] = []
    for layer, f in given.features:
        assert layer.running_mean is not None and layer.running_var is not None
        variance = f.transpose(0, 1).flatten(1).var(1, correction=0)
        gap = (f.mean((0, 2, 3)) - layer.running_mean).square().mean()
        rows.append(gap + (variance - layer.running_var).square().mean())
    torch.testing.assert_close(terms["statistics"], 0.3 * sum(rows) / 2)


@pytest.mark.parametrize(("reduction", "factor"), [("element", 1 / 5), ("batch", 1.0)])
def test_the_student_s_loss(reduction: str, factor: float) -> None:
    given = dream()
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    method = GDFQ.model_validate({"reduction": reduction, "temperature": 4.0})
    terms = method.student_terms(logits, given)
    p, q = (F.softmax(value / 4, 1) for value in (given.logits, logits))
    divergence = (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(terms["distillation"], 16 * factor * divergence)
    torch.testing.assert_close(terms["classes"], F.cross_entropy(logits, given.asked))


def test_large_images_get_classes_in_their_batch_norms() -> None:
    small = InputSpec(shape=(3, 32, 32), mean=(0, 0, 0), std=(1, 1, 1), classes=10)
    large = small.model_copy(update={"shape": (3, 224, 224)})
    assert GDFQ().generator_config(small).condition == "embedding"
    assert GDFQ().generator_config(large).condition == "batch_norm"
    assert GDFQ(condition="embedding").generator_config(large).condition == "embedding"


def test_rates_fall_to_a_tenth_at_every_milestone() -> None:
    rates = [GDFQ().rate("student", f, tuning=True) for f in (0, 0.24, 0.25, 0.5, 0.75)]
    assert rates == pytest.approx([1, 1, 0.1, 0.01, 0.001])
    assert GDFQ().rate("generator", 0.9, tuning=False) == 1  # the warm-up is the schedule's start


def test_a_generator_without_classes_is_refused() -> None:
    given = dream()
    bare = Dream(given.images, None, given.logits, given.features, [], 0, given.random)
    with pytest.raises(ConfigError, match="takes none"):
        GDFQ().generator_terms(bare, None, None)


def test_without_batch_norms_their_term_is_left_out() -> None:
    given = dream()
    bare = Dream(given.images, given.asked, given.logits, [], [], 0, given.random)
    assert set(GDFQ().generator_terms(bare, None, None)) == {"classes"}
    GDFQ().check(torch.nn.Linear(2, 2))


def test_a_method_that_needs_batch_norms_says_which_do_not() -> None:
    class Needy(GDFQ):
        needs_batch_norm: ClassVar[bool] = True

    with pytest.raises(ModelError, match=r"matches batch-norm statistics.* use dfqf, gdfq"):
        Needy().check(torch.nn.Linear(2, 2))
