"""Qimera's superposed classes: shares, embeddings, targets."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
import torch.nn.functional as F

from datafree.generators import Generator, GeneratorConfig
from datafree.training.base import Dream
from datafree.training.qimera import Qimera, superposed
from networks import captured, images


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def generator(condition: Literal["embedding", "batch_norm"] = "embedding") -> Generator:
    config = GeneratorConfig(shape=(3, 8, 8), classes=5, latent=10, width=8, condition=condition)
    return Generator(config, random())


def test_shares_are_a_softmax_and_classes_drawn_twice_have_both() -> None:
    found = superposed(2000, 3, 5, random())
    torch.testing.assert_close(found.sum(1), torch.ones(2000))
    counts = (found > 0).sum(1)
    assert set(counts.tolist()) == {1, 2, 3}
    # Of 3 draws out of 5: all differ in 4/5 * 3/5 of the cases.
    assert (counts == 3).float().mean().item() == pytest.approx(0.48, abs=0.05)
    drawn = random()
    classes = torch.randint(5, (2000, 3), generator=drawn)
    weights = torch.randn(2000, 3, generator=drawn).softmax(1)
    expected = sum(weights[:, k, None] * F.one_hot(classes[:, k], 5) for k in range(3))
    torch.testing.assert_close(found, expected)


def test_a_share_of_the_batches_lies_between_classes() -> None:
    made = generator()
    kinds = [Qimera().ask(made, 4, random(seed))[1] for seed in range(300)]
    mixed = sum(labels is not None and labels.is_floating_point() for labels in kinds)
    assert mixed / 300 == pytest.approx(0.4, abs=0.08)
    for mixing, expected in ((0.0, torch.int64), (1.0, torch.float32)):
        labels = Qimera(mixing=mixing).ask(made, 4, random())[1]
        assert labels is not None
        assert labels.dtype == expected


@pytest.mark.parametrize("condition", ["embedding", "batch_norm"])
def test_one_hot_shares_are_the_class(condition: Literal["embedding", "batch_norm"]) -> None:
    made = generator(condition)
    latents, labels = made.draw(6, random(1))
    assert labels is not None
    torch.testing.assert_close(
        made(latents, F.one_hot(labels, 5).float()), made(latents, labels), rtol=1e-5, atol=1e-6
    )


def test_embeddings_are_superposed_before_they_meet_the_latent_vector() -> None:
    made = generator().eval()
    latents = torch.randn(4, 10, generator=random(2))
    shares = superposed(4, 2, 5, random(3))
    embedding = made.embedding
    assert isinstance(embedding, torch.nn.Embedding)
    with torch.no_grad():
        own = made(latents, shares)
        mixed = sum(shares[:, k, None] * embedding.weight[k] for k in range(5))
        embedding.weight[0] = 1.0
        plain = made(latents * mixed, torch.zeros(4, dtype=torch.long))
    torch.testing.assert_close(own, plain, rtol=1e-4, atol=1e-5)


def test_both_cross_entropies_have_the_superposed_target() -> None:
    x, shares = images(8, 1), superposed(8, 2, 5, random())
    expected = captured("Tiny")(x).detach()
    given = Dream(x, shares, expected, [], [], 0, random())
    own = torch.randn(8, 5, generator=random(4))
    for logits, terms in (
        (expected, Qimera().generator_terms(given, None, None)),
        (own, Qimera().student_terms(own, given)),
    ):
        wanted = -(shares * torch.log_softmax(logits, 1)).sum(1).mean()
        torch.testing.assert_close(terms["classes"], wanted)
