"""Which layers are pairs, and that a factor between them changes no output."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from datafree.corrections._pairs import find_pairs
from datafree.corrections.equalize import equalize
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from networks import NETWORKS, SPEC, captured, images


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / (expected.max() - expected.min())).item()


def names(graph: fx.GraphModule) -> list[tuple[str, str]]:
    return [(pair.first, pair.second) for pair in find_pairs(graph)]


PAIRS: dict[str, list[tuple[str, str]]] = {
    "Tiny": [("conv1", "conv2"), ("conv2", "linear")],
    "Functional": [("w1", "w2")],
    "InPlaceResidual": [],
    "Tied": [("twin_1", "linear")],  # the other convolution is called twice
    "SharedNorm": [("conv1", "conv2"), ("conv2", "linear")],  # both take the norm over
    "Dropouts": [("conv", "linear")],
    "SamePadding": [],  # SiLU and ReLU6
    "Dense": [("conv", "fc1"), ("fc1", "fc2"), ("fc2", "fc3")],
    "Grouped": [("pointwise", "grouped")],  # ReLU6 between the others
    "CustomModules": [("features.0", "features.0.inner")],  # the sum and its factor are one layer
    "NormAfterActivation": [("conv2", "conv3"), ("fc1", "fc2")],  # the others stay norms
    "NoNorm": [("conv", "linear")],
    "Branched": [("stem", "wide"), ("wide", "deep"), ("deep", "linear")],
}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_pairs(name: str) -> None:
    assert names(fold_batch_norms(captured(name))) == PAIRS[name]


class Between(nn.Module):
    """A convolution, something, a reader."""

    def __init__(
        self, between: Callable[[Tensor], Tensor], second: nn.Module, first: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.first = first or nn.Conv2d(3, 4, 3, padding=1)
        self.between, self.second = between, second
        self.act = nn.PReLU(4, init=0.3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.between(self.act(self.first(x))))
        return torch.tanh(y if y.ndim == 2 else y.flatten(2).mean(2))


def conv(channels: int = 4, padding: int = 0) -> nn.Module:
    return nn.Conv2d(channels, 5, 3, padding=padding)


PASSES: list[tuple[Callable[[Tensor], Tensor], nn.Module]] = [
    (lambda x: x, conv()),
    (lambda x: F.leaky_relu(x, 0.1), conv(padding=1)),
    (lambda x: F.max_pool2d(x, 3, 2, 1), conv()),
    (lambda x: F.avg_pool2d(x, 3, 1, 1), conv()),
    (lambda x: F.adaptive_avg_pool2d(x, 4), conv()),
    (lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1), nn.Linear(4, 5)),
    (lambda x: x.view(x.size(0), -1), nn.Linear(256, 5)),
    (lambda x: x.mean((-1, -2)), nn.Linear(4, 5)),
    (lambda x: x.mean(3, keepdim=True), nn.Conv2d(4, 5, 1)),
    (lambda x: x.mean(3), nn.Conv1d(4, 5, 3)),
    (lambda x: x.mean(2).flatten(1, 2), nn.Linear(32, 5)),
]

STOPS: list[tuple[Callable[[Tensor], Tensor], nn.Module]] = [
    (torch.sigmoid, conv()),
    (F.silu, conv()),
    (F.elu, conv()),
    (lambda x: F.hardtanh(x, -1, 1), conv()),
    (lambda x: x + 1, conv()),
    (lambda x: x + x.mean((2, 3), keepdim=True), conv()),
    (lambda x: F.softmax(x, 1), conv()),
    (lambda x: x.mean(1, keepdim=True), conv(1)),
    (lambda x: x.transpose(1, 2).flatten(1), nn.Linear(256, 5)),
    (lambda x: x.flatten(2).mean(1), nn.Linear(64, 5)),
    (lambda x: F.pixel_shuffle(x, 2), conv(1)),
    (lambda x: x.mean((1, 2)), nn.Linear(8, 5)),
    (lambda x: F.adaptive_avg_pool2d(x.mean(3), (4, 8)), nn.Conv1d(4, 5, 3)),
    (lambda x: x.flatten(2), nn.Conv1d(4, 5, 3)),
    (lambda x: x.flatten(1).reshape(-1, 128), nn.Linear(128, 5)),
]


@pytest.mark.parametrize(("between", "second"), PASSES)
def test_what_a_factor_passes(between: Callable[[Tensor], Tensor], second: nn.Module) -> None:
    graph = fold_batch_norms(capture(Between(between, second).eval(), SPEC))
    assert names(graph) == [("first", "second")]
    equalized = equalize(graph)
    assert relative(equalized(images(5)), graph(images(5))) < 1e-5
    weight, before = equalized.get_parameter("first.weight"), graph.get_parameter("first.weight")
    assert not torch.allclose(weight, before, rtol=1e-3)


@pytest.mark.parametrize(("between", "second"), STOPS)
def test_what_stops_a_factor(between: Callable[[Tensor], Tensor], second: nn.Module) -> None:
    graph = fold_batch_norms(capture(Between(between, second).eval(), SPEC))
    assert names(graph) == []
    assert torch.equal(equalize(graph)(images(5)), graph(images(5)))
