"""Features of the built-in network, against hooks of torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from datafree.graph.taps import batch_norms
from datafree.report import Source
from datafree.report.features import features_of

pytestmark = pytest.mark.integration


def inputs_of(source: Source, path: str, images: Tensor) -> Tensor:
    seen: list[Tensor] = []
    layer = source.teacher.get_submodule(path)
    handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        source.teacher(images)
    handle.remove()
    return seen[0]


def test_every_batch_norm_is_seen_with_the_statistics_of_every_image(source: Source) -> None:
    images = source.images.images
    found = features_of(source.teacher, images.split(3), len(images))
    assert {one.path for one in found.norms} == set(batch_norms(source.teacher))
    for one in found.norms:
        features = inputs_of(source, one.path, images)[:, one.channels]
        torch.testing.assert_close(one.means, features.mean((2, 3)), atol=1e-5, rtol=1e-4)
        assert one.stds is not None
        torch.testing.assert_close(one.stds, features.std((2, 3)), atol=1e-3, rtol=1e-2)
        norm = source.teacher.get_submodule(one.path)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        torch.testing.assert_close(one.mean, norm.running_mean[one.channels])


def test_values_that_are_kept_are_values_of_their_channel(source: Source) -> None:
    images = source.images.images
    found = features_of(source.teacher, [images], len(images)).norms[0]
    channel = inputs_of(source, found.path, images)[:, int(found.channels[2])].flatten()
    assert found.values.shape[1] <= 2048
    assert bool(torch.isin(found.values[2], channel).all())


def test_features_before_the_end_are_what_the_classifier_reads(source: Source) -> None:
    images = source.images.images
    found = features_of(source.teacher, images.split(5), len(images))
    expected = inputs_of(source, "classifier", images)
    torch.testing.assert_close(found.last, expected, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(found.outputs, source.teacher(images), atol=1e-4, rtol=1e-4)


def test_no_hook_is_left(source: Source) -> None:
    images = source.images.images
    features_of(source.teacher, [images], len(images))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in source.teacher.modules())
