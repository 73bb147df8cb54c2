"""The alignment loss where a channel has one value per image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from datafree.config import InputSpec
from datafree.graph.alignment import Alignment, alignment_loss, margins, one_value
from datafree.synthesis.zeroq import ZeroQ


def plain(layers: int, batch: int) -> Alignment:
    zeros = torch.zeros(layers)
    return Alignment(zeros, zeros, torch.ones(layers, batch))


def distance(values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Of mean and deviation of every row of `values` (R, C, n), by hand."""
    own_std = (values.var(2) + 1e-6).sqrt()
    return ((values.mean(2) - mean) ** 2).sum(1) + ((own_std - std) ** 2).sum(1)


def test_rows_with_one_value_are_compared_together() -> None:
    maps, rows, tokens = torch.randn(4, 2, 5, 5), torch.randn(4, 3), torch.randn(12, 3)
    stored = [(torch.randn(c), torch.rand(c) + 0.5) for c in (2, 3, 3)]
    found = alignment_loss([maps, rows, tokens], stored, plain(3, 4))
    expected = distance(maps.flatten(2), *stored[0]).mean()
    for features, (mean, std) in zip((rows, tokens), stored[1:], strict=True):
        expected = expected + distance(features.T[None], mean, std)[0]
    torch.testing.assert_close(found, expected)


def test_a_network_of_such_rows_alone() -> None:
    rows, stored = torch.randn(6, 3), [(torch.zeros(3), torch.ones(3))]
    found = alignment_loss([rows], stored, plain(1, 6))
    torch.testing.assert_close(found, distance(rows.T[None], *stored[0])[0])


def test_their_margins_are_those_of_all_images() -> None:
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12)).eval()
    noise = torch.randn(256, 3, 2, 2)
    delta, gamma = margins(network, noise, 1.0)
    flat = noise.flatten(1)
    torch.testing.assert_close(delta[0], flat.mean(0).abs().max(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gamma[0], (flat.std(0) - 1).abs().max(), rtol=1e-3, atol=1e-5)


def test_one_value() -> None:
    assert one_value(torch.zeros(4, 3)) and one_value(torch.zeros(4, 3, 1, 1))
    assert not one_value(torch.zeros(4, 3, 1, 2))


def test_images_keep_apart_in_front_of_batch_norm_1d() -> None:
    """Alone, each of them would be driven to the same mean."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5)
    )
    for _ in range(50):
        network(torch.randn(32, 1, 8, 8))
    network.eval()
    spec = InputSpec(shape=(1, 8, 8), mean=(0.5,), std=(0.5,), classes=5)
    images = ZeroQ(iterations=200).generate(network, spec, 32).images
    norm = network[2]
    assert isinstance(norm, nn.BatchNorm1d) and norm.running_var is not None
    with torch.no_grad():
        features = network[:2](images)
    spread = features.var(0) / norm.running_var
    assert 0.5 < float(spread.mean()) < 1.5
