"""Subsets chosen by gradient matching, against gradients that autograd computes."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.config import Scheme
from datafree.errors import ConfigError, DataError, ModelError
from datafree.graph.capture import capture
from datafree.images import SyntheticSet
from datafree.losses import set_gradient, set_matching
from datafree.synthesis import subset
from datafree.synthesis._matching import calibrated, matching
from datafree.synthesis.subset import Subset, matching_part
from networks import SPEC, captured, images, randomized, saved_pool

SCHEME = Scheme(bits="W3A3", policy="brecq", weight_range="mse")


def features(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, generator=random), torch.randn(count, 3, generator=random)


def test_the_gradient_of_a_set_is_that_of_autograd() -> None:
    """Eq. (11)-(12): of ``1/(2N) |Y - A W|^2`` for W, with E = Y - A W."""
    inputs, residuals = features(7)
    weight = torch.randn(4, 3, requires_grad=True)
    wanted = (inputs @ weight).detach() + residuals
    loss = (wanted - inputs @ weight).square().sum() / (2 * 7)
    (expected,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(set_gradient((inputs, residuals)), expected)
    other = features(5, 1)
    cosine = F.cosine_similarity(expected.flatten(), set_gradient(other).flatten(), dim=0)
    torch.testing.assert_close(set_matching((inputs, residuals), other), 1 - cosine)
    assert set_matching(other, other).item() == pytest.approx(0, abs=1e-6)


def cosine(part: list[int], given: tuple[Tensor, Tensor]) -> float:
    """Of the sums of gradients, every one formed."""
    each = torch.einsum("nd,nc->ndc", *given).flatten(1)
    return F.cosine_similarity(each[part].sum(0), each.sum(0), dim=0).item()


def test_every_image_raises_the_cosine_most() -> None:
    given = features(12)
    chosen = matching_part(given, 5).tolist()
    assert len(set(chosen)) == 5
    for place, index in enumerate(chosen):
        before = chosen[:place]
        left = [i for i in range(12) if i not in before]
        best = max(left, key=lambda i: cosine([*before, i], given))
        assert index == best
    everyone = [cosine(list(part), given) for part in combinations(range(12), 5)]
    assert cosine(chosen, given) > sorted(everyone)[int(0.9 * len(everyone))]
    assert sorted(matching_part(given, 12).tolist()) == list(range(12))


def test_the_chosen_images_match_the_pool_better_than_random_ones() -> None:
    """On a quantized network, with its own gradients; the images are those of the file."""
    graph, path = captured("Tiny"), saved_pool(SPEC)
    pool = SyntheticSet.load(path)
    found = {
        choice: Subset(pool=path, choice=choice, scheme=SCHEME).generate(graph, SPEC, 8, seed=seed)  # pyright: ignore
        for choice, seed in (("gradient", 0), ("random", 0))
    }
    student = calibrated(graph, pool.images, SPEC, SCHEME)[1]
    with matching(graph, student) as matcher, torch.no_grad():
        whole = matcher.of_set(pool.images)
        near = {k: 1 - set_matching(matcher.of_set(v.images), whole).item()
                for k, v in found.items()}  # fmt: skip
    assert near["gradient"] > 0.9
    assert near["gradient"] > near["random"]
    for made in found.values():
        assert made.targets is not None
        for image, target in zip(made.images, made.targets, strict=True):
            place = [i for i, other in enumerate(pool.images) if torch.equal(image, other)]
            assert len(place) == 1
            assert pool.targets is not None
            assert pool.targets[place[0]] == target


def test_the_scheme_of_the_run_is_the_student_s() -> None:
    assert Subset().for_scheme(SCHEME).scheme == SCHEME
    own = Subset(scheme=Scheme(bits="W5A5"))
    assert own.for_scheme(SCHEME).scheme == Scheme(bits="W5A5")


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    graph, path = captured("Tiny"), saved_pool(SPEC)
    with pytest.raises(ConfigError, match="name their file with the option pool"):
        Subset().generate(graph, SPEC, 2)
    with pytest.raises(DataError, match="cannot read images"):
        Subset(pool=tmp_path / "none.safetensors").generate(graph, SPEC, 2)
    with pytest.raises(DataError, match="holds other images"):
        Subset(pool=path, digest="0" * 64).generate(graph, SPEC, 2)
    with pytest.raises(DataError, match="holds 40 images, and 41 are to be chosen"):
        Subset(pool=path).generate(graph, SPEC, 41)
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1))
    flat = capture(randomized(nn.Sequential(model, nn.Flatten()), images(8)), SPEC)
    with pytest.raises(ModelError, match="choose with choice=random"):
        Subset(pool=path).generate(flat, SPEC, 2)
    assert len(Subset(pool=path, choice="random").generate(flat, SPEC, 2)) == 2
    assert subset.Subset.chooses
