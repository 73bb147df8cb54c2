"""Images that teacher and student are compared on."""

from __future__ import annotations

import torch

from datafree.images import SyntheticSet
from datafree.tensors import state_digest
from datafree.verdict.held_out import balanced, held_out_images, mixtures
from networks import SPEC, captured


def test_counts_seeds_and_an_untouched_teacher() -> None:
    graph = captured("Tiny")
    before = state_digest(graph.state_dict())
    first = held_out_images(graph, SPEC, 20, seed=3)
    again = held_out_images(graph, SPEC, 20, seed=3)
    other = held_out_images(graph, SPEC, 20, seed=4)
    assert len(first) == 20 and first.digest() == again.digest() != other.digest()
    assert state_digest(graph.state_dict()) == before
    assert first.targets is not None
    with torch.no_grad():
        assert torch.equal(graph(first.images).argmax(1), first.targets)


def test_pixels_lie_between_black_and_white() -> None:
    found = held_out_images(captured("Tiny"), SPEC, 8, seed=0).images
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (SPEC.mean, SPEC.std))
    pixels = found * std + mean
    assert float(pixels.min()) > -1e-4 and float(pixels.max()) < 1 + 1e-4


def test_mixtures_keep_the_contrast() -> None:
    """Sine and cosine: what varies around grey by d and independently still varies by d."""
    random = torch.Generator().manual_seed(0)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (SPEC.mean, SPEC.std))
    pixels = 0.449 + 0.05 * torch.randn(40, *SPEC.shape, generator=random)
    found = mixtures(SyntheticSet((pixels - mean) / std, SPEC), 400, random) * std + mean
    assert abs(float(found.std()) / 0.05 - 1) < 0.03
    assert found.shape == (400, *SPEC.shape)


def test_answers_are_spread_over_the_classes() -> None:
    answers = torch.tensor([0] * 50 + [1] * 3 + [2] * 20)
    kept = answers[balanced(answers, 24)]
    assert torch.bincount(kept).tolist() == [11, 3, 10]
    assert len(balanced(answers, 73).unique()) == 73
