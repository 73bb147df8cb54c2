from __future__ import annotations

import pytest
import torch
from torch import nn

from datafree.graph.fold import fold_batch_norms
from datafree.graph.slopes import squared_slopes
from networks import NETWORKS, captured, images

RATE = 1e-3


@pytest.mark.parametrize("name", ["Branched", "Grouped", "Tiny"])
def test_a_step_in_front_of_norms_moves_the_folded_weight_by_the_factor(name: str) -> None:
    """Take the step before folding, branch by branch; fold; see how the one weight has moved."""
    network = captured(name)
    folded = fold_batch_norms(network).requires_grad_()
    x, factors = images(8), squared_slopes(network)
    folded(x).square().mean().backward()
    gradients = {path: folded.get_parameter(f"{path}.weight").grad for path in factors}

    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    weights = [layer.weight.requires_grad_() for layer in layers]
    network(x).square().mean().backward()
    with torch.no_grad():
        for weight in weights:
            assert weight.grad is not None
            weight -= RATE * weight.grad
    moved = fold_batch_norms(network)
    for path, factor in factors.items():
        before, gradient = folded.get_parameter(f"{path}.weight"), gradients[path]
        assert gradient is not None
        rows = factor.view(-1, 1, 1, 1) if factor.ndim == 1 else factor
        step = (before - moved.get_parameter(f"{path}.weight")).detach() / RATE
        assert float(step.abs().max()) > 1e-3
        torch.testing.assert_close(step.double(), rows * gradient, rtol=1e-2, atol=1e-3)


def test_factors_of_branches_are_those_of_each_tap() -> None:
    network = captured("Branched")
    found = squared_slopes(network)
    a = {
        name: norm.weight.double().square() / (norm.running_var.double() + norm.eps)
        for name in ("bn1", "bn2", "bn3")
        if isinstance(norm := network.get_submodule(name), nn.BatchNorm2d)
        and norm.running_var is not None
    }
    wide = a["bn1"].view(8, 1, 1, 1).repeat(1, 8, 3, 3)
    wide[:, :, 1, 1] += a["bn2"].view(8, 1)
    torch.testing.assert_close(found["wide"], wide)
    deep = a["bn3"].view(8, 1, 1, 1).repeat(1, 1, 3, 3) + 1  # the twin has no norm
    deep[:, :, 1, 1] += 1  # nor has the scale
    torch.testing.assert_close(found["deep"], deep)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_paths_are_those_of_the_folded_graph(name: str) -> None:
    network = captured(name)
    called = {str(node.target) for node in fold_batch_norms(network).graph.nodes}
    assert set(squared_slopes(network)) <= called
