"""Sets of images beside each other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from datafree.data import real_images
from datafree.images import SyntheticSet
from datafree.report import Source
from datafree.report.alternatives import of_plane, of_points, of_values
from datafree.report.sets import NOISE, REAL, SYNTHETIC, Sets, at_most, sets_of
from datafree.zoo import load_digits_test

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def real(source: Source, tmp_path_factory: pytest.TempPathFactory) -> SyntheticSet:
    import numpy as np

    pixels, labels = load_digits_test()
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(path, images=pixels, labels=labels)
    return real_images(path, source.spec, 32, 0)


@pytest.fixture(scope="module")
def sets(source: Source, real: SyntheticSet) -> Sets:
    many = SyntheticSet(torch.randn(32, *source.spec.shape), source.spec)
    return sets_of(source.teacher, many, real)


def test_all_sets_have_the_same_number_of_images(sets: Sets, source: Source) -> None:
    assert [(one.name, one.images) for one in sets.measured] == [
        (SYNTHETIC, 32), (NOISE, 32), (REAL, 32),
    ]  # fmt: skip
    few = sets_of(source.teacher, source.images)
    assert [one.images for one in few.measured] == [8, 8]
    assert set(few.features.points) == {SYNTHETIC, NOISE}


def test_real_images_are_nearer_to_the_batch_norms_than_noise(sets: Sets) -> None:
    synthetic, noise, real = sets.measured
    assert real.distance is not None and noise.distance is not None
    assert real.distance < 0.6 * noise.distance
    assert synthetic.distance == pytest.approx(noise.distance, rel=0.1), "both are noise here"


def test_shares_of_values_and_points_of_images_are_shown(sets: Sets) -> None:
    assert len(sets.channels) == 3
    for channel in sets.channels:
        assert channel.std > 0
        for name in (SYNTHETIC, NOISE, REAL):
            assert 0.9 < sum(channel.shares[name]) <= 1.001
            assert len(channel.points[name]) == 32
    assert len(sets.pixels.points[REAL]) == 32


def test_plots_are_told_in_words(sets: Sets) -> None:
    assert "real around" in of_values(sets.channels[0])
    assert "noise means" in of_points(sets.channels[0])
    assert of_plane(sets.features).startswith("32 of synthetic around (")


def test_alike_images_are_told_from_different_ones(source: Source, real: SyntheticSet) -> None:
    alike = replace(real, images=real.images[:1].repeat(32, 1, 1, 1))
    measured = sets_of(source.teacher, alike, real).measured
    same, different = measured[0], measured[2]
    assert same.variance == pytest.approx(0, abs=1e-6)
    assert same.similarity == (pytest.approx(1), pytest.approx(1))
    assert same.density == (None, None), "points on one place have no density"
    assert different.rank is not None and different.rank > 1.5
    assert different.variance is not None and different.variance > 0.01


def test_a_network_without_batch_norms_has_planes_alone(source: Source) -> None:
    found = sets_of(without_norms(source), source.images)
    assert found.channels == ()
    assert [one.distance for one in found.measured] == [None, None]
    assert found.measured[0].similarity[0] is not None


def without_norms(source: Source) -> torch.fx.GraphModule:
    from datafree.graph.fold import fold_batch_norms

    return fold_batch_norms(source.teacher)


def test_large_images_are_fewer(source: Source) -> None:
    large = source.spec.model_copy(
        update={"shape": (3, 224, 224), "mean": (0,) * 3, "std": (1,) * 3}
    )
    assert at_most(SyntheticSet(torch.zeros(1, 3, 224, 224), large)) == 16
    assert at_most(source.images) == 256
