"""Features of logits, against numbers worked out by hand and bounds that hold for all."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from datafree.verdict.features import features, judged_features, sure_enough


def logits(count: int, classes: int, seed: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))


def test_two_images_by_hand() -> None:
    """Logits log 3 and 0 are probabilities 3/4 and 1/4; the second image's answer changes."""
    three = math.log(3.0)
    teacher = torch.tensor([[three, 0.0], [three, 0.0]])
    student = torch.tensor([[three, 0.0], [0.0, three]])
    found = features(teacher, student)
    assert found.flips == 0.5 and found.images == 2 and found.classes == 2
    assert found.expected_loss == pytest.approx(0.5 * (0.75 - 0.25))
    assert found.kl == pytest.approx(0.5 * (0.75 - 0.25) * math.log(3.0))
    assert found.margin_loss == pytest.approx(0.5)
    assert found.commonest == 0.5 and found.commonest_teacher == 1.0
    # around their means both images have 2 (log 3 / 2)^2, and the second's error 2 (log 3)^2
    assert found.sqnr_db == pytest.approx(10 * math.log10(1 / 2))


def test_nothing_is_lost_by_a_copy() -> None:
    same = logits(64, 10, 0)
    found = features(same, same.clone(), worst_layer_db=30.0)
    lost = (found.kl, found.flips, found.expected_loss, found.margin_loss, found.doubt)
    assert max(map(abs, lost)) < 1e-9 and found.near_flips < 1e-9
    assert found.sqnr_db > 100 and found.worst_layer_db == 30.0


@pytest.mark.parametrize("noise", [0.1, 1.0, 10.0])
def test_expected_loss_lies_between_nothing_and_all_flips(noise: float) -> None:
    teacher = logits(512, 10, 1)
    found = features(teacher, teacher + noise * torch.randn(512, 10))
    assert 0 <= found.expected_loss <= found.flips <= 1
    assert 0 <= found.near_flips <= 1


def test_sure_teachers_expect_to_lose_every_flip() -> None:
    teacher = logits(512, 10, 2, scale=1000.0)
    found = features(teacher, teacher + 500 * logits(512, 10, 3))
    assert found.expected_loss == pytest.approx(found.flips, abs=0.01)


def test_all_features_grow_with_the_noise() -> None:
    teacher, noise = logits(512, 10, 4), torch.randn(512, 10)
    told = [features(teacher, teacher + size * noise) for size in (0.1, 0.5, 2.0, 8.0)]
    for name in ("kl", "flips", "expected_loss", "margin_loss", "doubt", "near_flips"):
        values = [getattr(one, name) for one in told]
        assert values == sorted(values) and values[0] < values[-1], name
    assert [one.sqnr_db for one in told] == sorted((one.sqnr_db for one in told), reverse=True)


def test_near_flips_are_those_of_gaussian_errors() -> None:
    """With errors that are Gaussian the share that is foretold is the share that is found."""
    teacher = torch.zeros(20_000, 2)
    teacher[:, 0] = torch.rand(20_000, generator=torch.Generator().manual_seed(5)) * 4
    student = teacher + logits(20_000, 2, 6, scale=0.7)
    found = features(teacher, student)
    assert found.near_flips == pytest.approx(found.flips, abs=0.01)


@pytest.mark.parametrize("softened", [1.0, 0.8])
def test_the_least_sure_images_are_left_out_until_the_mean_is_enough(softened: float) -> None:
    """Confidences 0.95, 0.9, 0.85, 0.6: the surest is sure, and the first three have a mean of 0.9.

    A network that is never sure is judged by the same images.
    """
    shares = softened * torch.tensor([0.6, 0.95, 0.85, 0.9], dtype=torch.float64)
    rest = (1 - shares) / 3
    teacher = torch.stack((shares, rest, rest, rest), 1).log()
    assert sure_enough(teacher, 0.9 / 0.95 - 1e-9).tolist() == [1, 3, 2]
    assert sure_enough(teacher, 0.1).tolist() == [1, 3, 2, 0]
    assert sure_enough(teacher, 1.0).tolist() == [1, 3]  # never fewer than half


def test_shares_of_answers_are_those_of_all_images() -> None:
    teacher = torch.tensor([[9.0, 0.0]] * 2 + [[0.0, 0.1]] * 6)
    found = judged_features(teacher, teacher)
    assert found.images == 4 and found.commonest == found.commonest_teacher == 0.75
