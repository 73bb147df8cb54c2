from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from datafree.graph.capture import capture
from datafree.graph.insert import quantizable_layers
from datafree.testing.watching import fingerprint
from networks import SPEC, images


class Standardised(nn.Conv2d):
    """A convolution that standardises its kernels."""

    def forward(self, input: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        std = self.weight.var((1, 2, 3), keepdim=True, unbiased=False).add(1e-5).sqrt()
        return F.conv2d(input, (self.weight - mean) / std, self.bias, padding=1)


class Computed(nn.Module):
    """Computed weights of four kinds, one of them used twice, and a table of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.normed = parametrizations.weight_norm(nn.Conv2d(3, 4, 3, padding=1))
        self.standard = Standardised(4, 4, 3, padding=1)
        self.spectral = parametrizations.spectral_norm(nn.Conv2d(4, 4, 1))
        self.head = parametrizations.weight_norm(nn.Linear(4, 5))
        self.table = nn.Parameter(torch.randn(1, 4, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.standard(self.normed(x)))
        x = self.spectral(F.relu(self.spectral(x)))
        x = x + F.interpolate(self.table, scale_factor=2.0) * 0.5
        return self.head(x.mean((2, 3)))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Computed().eval()


def test_computed_weights_become_layers_under_their_paths(model: nn.Module) -> None:
    before = fingerprint(model)
    graph = capture(model, SPEC)
    assert quantizable_layers(graph) == ["normed", "standard", "spectral", "head"]
    assert isinstance(graph.get_submodule("standard"), nn.Conv2d)
    x = images(4, 1)
    with torch.no_grad():
        assert torch.equal(graph(x), model(x))
        weight = graph.get_submodule("normed").get_parameter("weight")
        expected = model.get_submodule("normed").weight
        assert isinstance(expected, Tensor)
        assert torch.equal(weight, expected)
    assert fingerprint(model) == before


def test_nothing_is_computed_from_parameters_any_more(model: nn.Module) -> None:
    graph = capture(model, SPEC)
    constants = {node for node in graph.graph.nodes if node.op == "get_attr"}
    for node in graph.graph.nodes:
        if node.op == "call_function":
            assert not set(node.all_input_nodes) <= constants


def test_random_and_written_tensors_are_left_alone() -> None:
    class Counts(nn.Module):
        calls: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(5))
            self.linear = nn.Linear(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            noise = torch.rand_like(self.calls) * 0
            return self.linear(x.mean((2, 3))) + noise

    graph = capture(Counts().eval(), SPEC)
    assert any("rand_like" in str(node.target) for node in graph.graph.nodes)
