"""The images that held-out networks are compared on, against plain formulas of their loss."""

from __future__ import annotations

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from datafree.graph.watched import WatchedNetwork
from datafree.synthesis.probe import Probe, distance
from datafree.tensors import fast_copy
from networks import SPEC, build, captured, images
from reference import batch_norm_inputs


def state(name: str) -> WatchedNetwork:
    made = Probe().prepare(captured(name), SPEC, torch.Generator())
    assert isinstance(made, WatchedNetwork)
    return made


@pytest.mark.parametrize("name", ["Tiny", "InPlaceResidual", "Grouped", "SharedNorm"])
def test_the_distance_is_the_mean_over_layers_and_channels(name: str) -> None:
    network, x = state(name), images(4, 1)
    with torch.no_grad():
        network(x)
        found = distance(network.statistics()).item()
    each: list[float] = []
    for norm, features in batch_norm_inputs(build(name), x):
        assert isinstance(norm, _BatchNorm)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        values = features.detach().double()
        std = (norm.running_var.double() + 1e-6).sqrt()
        gaps = ((values.mean((0, 2, 3)) - norm.running_mean) / std).square()
        spread = ((values.var((0, 2, 3)) + 1e-6).sqrt() / std - 1).square()
        each.append(float((gaps + spread).mean()))
    assert found == pytest.approx(sum(each) / len(each), rel=1e-3)


def test_images_come_nearer_to_the_statistics() -> None:
    network = state("Tiny")
    few, many = (
        Probe(iterations=steps, label_weight=0).generate(captured("Tiny"), SPEC, 16, seed=0).images
        for steps in (1, 30)
    )
    found: list[float] = []
    with torch.no_grad():
        for made in (few, many):
            network(made)
            found.append(distance(network.statistics()).item())
    assert found[1] < 0.5 * found[0]


def test_a_network_without_norms_is_passed_as_it_is() -> None:
    made = Probe().prepare(fast_copy(captured("NoNorm")), SPEC, torch.Generator())
    assert not isinstance(made, WatchedNetwork)
