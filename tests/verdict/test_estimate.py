"""From features to words."""

from __future__ import annotations

import math

import pytest
import torch

from datafree.config.outputs import Output
from datafree.verdict.estimate import estimate, measured, word_of
from datafree.verdict.features import Features, features
from datafree.verdict.judge import judge
from datafree.verdict.model import Model, fitted, log_odds, share_of

CURVE = Model(
    weights={"flips": 1.0}, bias=0.0, floor=0.002, below=1.0, above=1.0, top1=90.0,
    networks=2, cells=2, records="",
)  # fmt: skip
"""The share that is lost is the share of flips."""


def told(**changes: float) -> Features:
    base = {
        "images": 256, "classes": 10, "kl": 0.1, "flips": 0.1, "expected_loss": 0.05,
        "margin_loss": 0.02, "doubt": 0.02, "near_flips": 0.05, "sqnr_db": 15.0,
        "commonest": 0.12, "commonest_teacher": 0.1,
    }  # fmt: skip
    return Features.model_validate(base | changes)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999, 1.0])
def test_odds_and_back(share: float) -> None:
    assert share_of(log_odds(share, 0.002), 0.002) == pytest.approx(share, abs=1e-12)
    assert share_of(1000.0, 0.002) == 1.0 and share_of(-1000.0, 0.002) == 0.0


def test_the_curve_is_what_it_says() -> None:
    """Of 80 points over chance a quarter is lost."""
    loss, low, high = CURVE.loss(told(flips=0.25))
    assert loss == pytest.approx(20.0)
    odds = math.exp(log_odds(0.25, 0.002) - 1)
    assert low == pytest.approx(80 * (odds * 1.002 - 0.002) / (1 + odds))
    assert high > loss


def test_the_model_of_the_package_never_falls_with_the_damage() -> None:
    model = fitted()
    assert model.networks >= 6 and model.cells >= 60
    assert min(model.weights.values()) >= 0 and model.top1 > 50
    teacher = 3 * torch.randn(256, 10, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(256, 10, generator=torch.Generator().manual_seed(1))
    found = [estimate(features(teacher, teacher + size * noise)) for size in (0.0, 0.2, 1, 4, 16)]
    losses = [one.loss for one in found]
    assert losses == sorted(losses)
    assert all(one.low <= one.loss <= one.high for one in found)
    assert found[0].word == "good" and not found[0].ranked and "cannot be ranked" in found[0].why
    assert found[-1].word == "poor" and found[-1].loss > 20


def test_one_answer_for_everything_is_poor_and_called_that() -> None:
    found = estimate(told(commonest=0.99, commonest_teacher=0.11, flips=0.0), CURVE)
    assert found.word == "poor" and "says the same of 99 %" in found.why
    assert estimate(told(commonest=0.99, commonest_teacher=0.97, flips=0.0), CURVE).word == "good"


def test_the_commonest_answer_is_told_where_it_matters() -> None:
    assert "commonest" in estimate(told(commonest=0.4), CURVE).why
    assert "commonest" not in estimate(told(commonest=0.15), CURVE).why


def test_few_images_are_not_good() -> None:
    assert estimate(told(flips=0.0), CURVE).word == "good"
    found = estimate(told(flips=0.0, images=16), CURVE)
    assert found.word == "check" and found.high == 300 / 16


def test_what_cannot_be_told_apart_is_not_claimed() -> None:
    """Half a point is not told from nothing, and three images of 150 may always be lost."""
    found = estimate(told(flips=0.001, images=150), CURVE)
    assert found.low == 0.0 and found.high == 2.0 and not found.ranked


@pytest.mark.parametrize(
    ("loss", "high", "word"),
    [(0.0, 1.0, "good"), (1.0, 50.0, "check"), (4.0, 6.0, "check"), (7.0, 9.0, "poor")],
)
def test_words(loss: float, high: float, word: str) -> None:
    assert word_of(loss, high) == word


def test_words_are_ordered() -> None:
    check = measured(90.0, 86.0, 10_000)
    assert check.word == "check" and check.reaches("check") and not check.reaches("poor")
    assert measured(90.0, 10.0, 10_000).reaches("check")
    assert measured(90.0, 90.5, 10_000).word == "good"


def test_what_was_measured_has_the_error_of_its_images() -> None:
    """4 points on 100 images: two standard errors are 2 sqrt(0.04 / 100), 4 points."""
    found = measured(90.0, 86.0, 100)
    assert (found.low, found.loss, found.high) == pytest.approx((0.0, 4.0, 8.0))
    assert found.measured


def test_one_logit_is_judged_by_its_sign() -> None:
    teacher = torch.tensor([[2.0], [-2.0]] * 64)
    verdict, found = judge(teacher, -teacher)
    assert found is not None and found.classes == 2 and found.flips == 1.0
    assert verdict.word == "poor"
    assert judge(teacher, teacher)[0].word == "good"


def test_dense_classes_are_judged_by_position() -> None:
    head = Output(name="masks", shape=(3, 4, 4), kind="dense_classes")
    teacher = 5 * torch.randn(80, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    student = teacher.clone()
    student[:, :, 0, 0] = -student[:, :, 0, 0]
    verdict, found = judge(teacher.flatten(1), student.flatten(1), (head,))
    assert found is not None and found.images == 80 and verdict.unit == "points"
    assert found.flips == pytest.approx(1 / 16, abs=0.005)


@pytest.mark.parametrize(("noise", "word"), [(0.03, "good"), (0.2, "check"), (0.6, "poor")])
def test_numbers_have_a_scale_of_their_own(noise: float, word: str) -> None:
    """Gaussian errors of `noise` deviations."""
    random = torch.Generator().manual_seed(3)
    teacher = 7 + 2 * torch.randn(256, 4, generator=random)
    student = teacher + 2 * noise * torch.randn(256, 4, generator=random)
    head = Output(name="boxes", shape=(4,), kind="values")
    verdict, found = judge(teacher, student, (head,))
    assert found is None and verdict.word == word and verdict.unit == "percent of the deviation"
    assert verdict.loss == pytest.approx(100 * noise, rel=0.1)
    assert verdict.low <= verdict.loss <= verdict.high
