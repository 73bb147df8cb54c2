"""DSG's three additions to GDFQ."""

from __future__ import annotations

import pytest
import torch

from datafree.graph.alignment import margins
from datafree.graph.taps import stored_statistics, tap_batch_norms
from datafree.losses import correlation_inhibition
from datafree.training.base import Dream
from datafree.training.dsg_qat import DSGQAT
from datafree.training.gdfq import GDFQ
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


def test_without_parts_on_gdfq_s_loss_it_is_gdfq() -> None:
    """The row "GDFQ" of Table 1, to the last bit."""
    bare = DSGQAT(statistics="gdfq", epsilon=0, enhancement=False, beta=0, statistics_weight=0.3)
    memory = bare.remember(captured("Tiny"), SPEC, torch.Generator().manual_seed(0))
    given = dream(images(5, 2))
    found = bare.generator_terms(given, None, memory)
    expected = GDFQ(statistics_weight=0.3).generator_terms(given, None, None)
    assert found.keys() == expected.keys() == {"classes", "statistics"}
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize(("epsilon", "enhancement"), [(0.0, True), (0.5, False), (0.5, True)])
def test_slack_and_enhancement_on_gdfq_s_loss(epsilon: float, enhancement: bool) -> None:
    """The rows "GDFQ + SDA" and "GDFQ + LSE": variances of the batch, channel by channel."""
    method = DSGQAT(
        statistics="gdfq", epsilon=epsilon, enhancement=enhancement, beta=0, batch_size=5,
        margin_images=16, statistics_weight=0.3,
    )  # fmt: skip
    memory = method.remember(captured("Tiny"), SPEC, torch.Generator().manual_seed(0))
    noise = torch.randn(16, *SPEC.shape, generator=torch.Generator().manual_seed(0))
    limits = gaps_in_variance(noise, epsilon)
    for step in range(3):
        given = dream(3 * images(5, 2), 5 * step)
        expected = 0.0
        for index, (layer, features) in enumerate(given.features):
            rows = features.movedim(1, 0).flatten(1).double()
            row = 0.0
            for c, values in enumerate(rows):
                assert layer.running_mean is not None and layer.running_var is not None
                off = (values.mean() - layer.running_mean[c]).abs().item()
                wide = (values.var(correction=0) - layer.running_var[c]).abs().item()
                row += max(off - limits[index][0], 0) ** 2 + max(wide - limits[index][1], 0) ** 2
            double = enhancement and step % len(given.features) == index
            expected += (2 if double else 1) * row / len(rows)
        expected *= 0.3 / len(given.features)
        found = method.generator_terms(given, None, memory)["statistics"]
        assert expected > 1e-4
        assert found.item() == pytest.approx(expected, rel=1e-4)


def gaps_in_variance(noise: torch.Tensor, epsilon: float) -> list[tuple[float, float]]:
    """Eq. (6) for means and biased variances over all images: quantiles over the channels."""
    teacher = captured("Tiny")
    found: list[tuple[float, float]] = []
    with torch.no_grad(), tap_batch_norms(teacher) as taps:
        teacher(noise)
        for layer, features in taps:
            rows = features.movedim(1, 0).flatten(1).double()
            assert layer.running_mean is not None and layer.running_var is not None
            off = (rows.mean(1) - layer.running_mean).abs()
            wide = (rows.var(1, correction=0) - layer.running_var).abs()
            ends = (torch.quantile(gap, epsilon).item() if epsilon else 0.0 for gap in (off, wide))
            found.append((next(ends), next(ends)))
    return found


def test_correlation_is_added_to_gdfq_s_loss() -> None:
    """The row "GDFQ + SCI"."""
    method = DSGQAT(statistics="gdfq", epsilon=0, enhancement=False, beta=2.0)
    memory = method.remember(captured("Tiny"), SPEC, torch.Generator().manual_seed(0))
    given = dream(images(6, 4))
    found = method.generator_terms(given, None, memory)
    assert found.keys() == {"classes", "statistics", "correlation"}
    own = DSGQAT(beta=2.0).generator_terms(given, None, memory)["correlation"]
    assert torch.equal(found["correlation"], own)
