"""DSG's three additions to GDFQ."""

from __future__ import annotations

import pytest
import torch

from datafree.graph.alignment import margins
from datafree.graph.taps import stored_statistics, tap_batch_norms
from datafree.losses import correlation_inhibition
from datafree.training.base import Dream
from datafree.training.dsg_qat import DSGQAT
from networks import SPEC, captured, images


def dream(x: torch.Tensor, start: int = 0, seed: int = 0) -> Dream:
    teacher = captured("Tiny")
    with tap_batch_norms(teacher) as taps:
        logits = teacher(x)
        features = list(taps)
    random = torch.Generator().manual_seed(seed)
    blocks = [features[0][1], features[1][1]]
    return Dream(x, torch.arange(len(x)) % 5, logits, features, blocks, start, random)


def by_hand(given: Dream, memory: object, enhanced: bool) -> torch.Tensor:
    """Sum over layers, mean over images, of the slack losses; sample n doubles layer n mod N."""
    total = torch.zeros(())
    layers = len(given.features)
    for index, (layer, features) in enumerate(given.features):
        mean, std = stored_statistics(layer)
        for n, sample in enumerate(features):
            own = sample.flatten(1)
            gaps = (
                ((own.mean(1) - mean).abs() - memory.delta[index]).relu(),  # pyright: ignore
                ((own.var(1) + 1e-6).sqrt() - std).abs() - memory.gamma[index],  # pyright: ignore
            )
            row = gaps[0].square().sum() + gaps[1].relu().square().sum()
            double = enhanced and (n + given.start) % layers == index
            total = total + (2 if double else 1) * row
    return total / len(given.images)


@pytest.mark.parametrize("enhanced", [True, False])
@pytest.mark.parametrize("start", [0, 3])
def test_the_alignment_is_dsg_s_per_sample_with_margins_and_enhancement(
    enhanced: bool, start: int
) -> None:
    method = DSGQAT(enhancement=enhanced, margin_images=16, epsilon=0.5, alpha=0.2)
    memory = method.remember(captured("Tiny"), SPEC, torch.Generator().manual_seed(0))
    given = dream(3 * images(5, 2), start)
    terms = method.generator_terms(given, None, memory)
    expected = 0.2 * by_hand(given, memory, enhanced)
    assert expected > 0.01
    torch.testing.assert_close(terms["alignment"], expected)


def test_statistics_of_the_batch_enhance_a_layer_a_step() -> None:
    method = DSGQAT(granularity="batch", batch_size=5, margin_images=16, epsilon=0.5, alpha=0.2)
    memory = method.remember(captured("Tiny"), SPEC, torch.Generator().manual_seed(0))
    noise = torch.randn(16, *SPEC.shape, generator=torch.Generator().manual_seed(0))
    delta, gamma = margins(captured("Tiny"), noise, 0.5, "batch")
    assert torch.equal(memory.delta, delta) and torch.equal(memory.gamma, gamma)
    for step in range(3):
        given = dream(3 * images(5, 2), 5 * step)
        expected = torch.zeros(())
        for index, (layer, features) in enumerate(given.features):
            mean, std = stored_statistics(layer)
            values = features.movedim(1, 0).flatten(1)
            off = ((values.mean(1) - mean).abs() - delta[index]).relu().square().sum()
            deviation = (values.var(1) + 1e-6).sqrt()
            off = off + ((deviation - std).abs() - gamma[index]).relu().square().sum()
            expected = expected + (2 if step % len(given.features) == index else 1) * off
        found = method.generator_terms(given, None, memory)["alignment"]
        assert found > 0.001
        torch.testing.assert_close(found, 0.2 * expected)


def test_margins_come_from_gaussian_images() -> None:
    random = torch.Generator().manual_seed(3)
    memory = DSGQAT(margin_images=32).remember(captured("Tiny"), SPEC, random)
    noise = torch.randn(32, *SPEC.shape, generator=torch.Generator().manual_seed(3))
    delta, gamma = margins(captured("Tiny"), noise, 0.9)
    assert torch.equal(memory.delta, delta) and torch.equal(memory.gamma, gamma)
    assert (delta > 0).all() and (gamma > 0).all()


def test_without_slack_there_is_no_margin() -> None:
    memory = DSGQAT(epsilon=0).remember(captured("Tiny"), SPEC, torch.Generator())
    assert not memory.delta.any() and not memory.gamma.any()


def test_correlation_is_summed_over_the_generator_s_blocks() -> None:
    method = DSGQAT(margin_images=8, beta=2.0)
    memory = method.remember(captured("Tiny"), SPEC, torch.Generator())
    given = dream(images(6, 4))
    terms = method.generator_terms(given, None, memory)
    random, expected = torch.Generator().manual_seed(1), torch.zeros(())
    for block in given.blocks:
        expected = expected + correlation_inhibition(
            block, torch.randn(block.shape, generator=random)
        )
    assert expected > 0
    torch.testing.assert_close(terms["correlation"], 2 * expected, check_dtype=False)
    left_out = DSGQAT(beta=0).generator_terms(given, None, memory)
    assert set(left_out) == {"classes", "alignment"}
