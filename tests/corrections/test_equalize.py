from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from datafree.config import InputSpec, Scheme
from datafree.corrections._pairs import find_pairs
from datafree.corrections.equalize import equalize
from datafree.errors import ModelError
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from networks import NETWORKS, SPEC, Grouped, build, captured, fingerprint, images, randomized


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / (expected.max() - expected.min())).item()


def folded_graph(model: nn.Module | str, spec: InputSpec = SPEC) -> fx.GraphModule:
    graph = captured(model) if isinstance(model, str) else capture(model.eval(), spec)
    return fold_batch_norms(graph)


def names(graph: fx.GraphModule, *, through_relu6: bool = False) -> list[tuple[str, str]]:
    return [(p.first, p.second) for p in find_pairs(graph, through_relu6=through_relu6)]


def unequal(graph: fx.GraphModule, first: str, second: str, run: int = 1) -> float:
    """Largest relative difference of the two ranges of a channel, one channel at a time."""
    before, after = graph.get_submodule(first), graph.get_submodule(second)
    rows, columns = before.weight, after.weight
    assert isinstance(rows, Tensor)
    assert isinstance(columns, Tensor)
    groups = int(getattr(after, "groups", 1))
    outs, ins = len(columns) // groups, len(rows) // groups
    worst = 0.0
    for channel in range(len(rows)):
        group, place = divmod(channel, ins)
        block = columns[group * outs : (group + 1) * outs]
        block = block[:, place * run : (place + 1) * run]
        one, two = rows[channel].abs().max().item(), block.abs().max().item()
        worst = max(worst, abs(one - two) / max(one, two))
    return worst


PAIRS: dict[str, list[tuple[str, str]]] = {
    "Tiny": [("conv1", "conv2"), ("conv2", "linear")],
    "Functional": [("w1", "w2")],
    "InPlaceResidual": [],
    "Tied": [("twin_1", "linear")],  # the other convolution is called twice
    "SharedNorm": [],
    "Dropouts": [("conv", "linear")],
    "SamePadding": [],  # SiLU and ReLU6
    "Dense": [("conv", "fc1"), ("fc1", "fc2"), ("fc2", "fc3")],
    "Grouped": [("pointwise", "grouped")],  # ReLU6 between the others
    "CustomModules": [],
    "NormAfterActivation": [("conv2", "conv3"), ("fc1", "fc2")],  # the others stay norms
    "NoNorm": [("conv", "linear")],
}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_pairs(name: str) -> None:
    assert names(folded_graph(name)) == PAIRS[name]


@pytest.mark.parametrize("name", list(NETWORKS))
def test_outputs_stay_and_the_graph_given_too(name: str) -> None:
    graph = folded_graph(name)
    before = fingerprint(graph)
    equalized = equalize(graph)
    assert fingerprint(graph) == before
    assert relative(equalized(images(5)), graph(images(5))) < 1e-5
    assert not any(p.requires_grad for p in equalized.parameters())
    double = graph.double()
    x = images(5).double()
    assert relative(equalize(double)(x), double(x)) < 1e-12


@pytest.mark.parametrize(
    ("name", "first", "second", "run"),
    [
        ("Tiny", "conv1", "conv2", 1),
        ("Tiny", "conv2", "linear", 1),
        ("Dense", "conv", "fc1", 9),
        ("Dense", "fc1", "fc2", 1),
        ("Dense", "fc2", "fc3", 1),
    ],
)
def test_ranges_become_equal(name: str, first: str, second: str, run: int) -> None:
    graph = folded_graph(name)
    assert unequal(graph, first, second, run) > 0.1
    assert unequal(equalize(graph), first, second, run) < 1e-4


class Two(nn.Module):
    """Two linear layers of 2x2."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 2), nn.Linear(2, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(x.mean((2, 3)))))


def test_by_hand() -> None:
    """Ranges 8 and 2 give s = 2; ranges 1 and 9 give s = 1/3."""
    model = Two()
    model.one.weight.data = torch.tensor([[8.0, -4, 0], [1, 0, -1]])
    assert model.one.bias is not None
    model.one.bias.data = torch.tensor([3.0, 5])
    model.two.weight.data = torch.tensor([[2.0, 1], [0, -9], [1, 0], [0, 0], [-2, 3]])
    equalized = equalize(folded_graph(model))
    expected = {
        "one.weight": [[4.0, -2, 0], [3, 0, -3]],
        "one.bias": [1.5, 15],
        "two.weight": [[4, 1 / 3], [0, -3], [2, 0], [0, 0], [-4, 1]],
    }
    for name, values in expected.items():
        torch.testing.assert_close(equalized.get_parameter(name), torch.tensor(values))
    assert equalized.get_submodule("two").bias is None


def test_grouped_and_depthwise_chain() -> None:
    """stem -> depthwise -> pointwise -> grouped -> linear: all four pairs at once."""
    model = build("Grouped")
    graph = fold_batch_norms(capture(model, SPEC))
    chain = ["stem", "depthwise", "pointwise", "grouped", "linear"]
    assert names(graph, through_relu6=True) == list(itertools.pairwise(chain))
    without = equalize(graph)
    assert relative(without(20 * images(4)), graph(20 * images(4))) < 1e-5
    assert torch.equal(without.get_parameter("stem.weight"), graph.get_parameter("stem.weight"))
    equalized = equalize(graph, replace_relu6=True)
    assert not any(isinstance(m, nn.Hardtanh) for m in equalized.modules())
    for first, second in itertools.pairwise(chain):
        assert unequal(graph, first, second) > 0.1
        assert unequal(equalized, first, second) < 1e-4


def test_replaced_relu6_is_relu() -> None:
    model = build("Grouped")
    assert isinstance(model, Grouped)
    clipped = fold_batch_norms(capture(model, SPEC))
    model.set_submodule("act", nn.ReLU())
    plain = fold_batch_norms(capture(model, SPEC))
    x = 20 * images(6)
    assert relative(clipped(x), plain(x)) > 1e-2
    assert relative(equalize(clipped, replace_relu6=True)(x), plain(x)) < 1e-5


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
    graph = folded_graph(Between(between, second))
    assert names(graph) == [("first", "second")]
    equalized = equalize(graph)
    assert relative(equalized(images(5)), graph(images(5))) < 1e-5
    run = int(getattr(second, "in_features", 4)) // 4
    assert unequal(equalized, "first", "second", run) < 1e-5


@pytest.mark.parametrize(("between", "second"), STOPS)
def test_what_stops_a_factor(between: Callable[[Tensor], Tensor], second: nn.Module) -> None:
    graph = folded_graph(Between(between, second))
    assert names(graph) == []
    assert torch.equal(equalize(graph)(images(5)), graph(images(5)))


class Residual(nn.Module):
    """A residual block between a stem and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.inner, self.outer = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
        self.linear = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.outer(torch.relu(self.inner(x))))
        return self.linear(x.mean((2, 3)))


def test_only_inside_the_branch_of_a_residual_block() -> None:
    graph = folded_graph(Residual())
    assert names(graph) == [("inner", "outer")]
    equalized = equalize(graph)
    assert relative(equalized(images(5)), graph(images(5))) < 1e-5
    for name in ("stem.weight", "linear.weight", "outer.bias"):
        assert torch.equal(equalized.get_parameter(name), graph.get_parameter(name))
    assert unequal(equalized, "inner", "outer") < 1e-5


def test_dead_channels_stay_as_they_are() -> None:
    graph = folded_graph("Tiny")
    with torch.no_grad():
        graph.get_parameter("conv1.weight")[1] = 0
        graph.get_parameter("conv2.weight")[:, 2] = 0
    equalized = equalize(graph)
    assert relative(equalized(images(5)), graph(images(5))) < 1e-5
    bias, before = equalized.get_parameter("conv1.bias"), graph.get_parameter("conv1.bias")
    assert torch.equal(bias[1:3], before[1:3])
    assert not torch.equal(bias, before)


def test_factors_are_bounded() -> None:
    graph = folded_graph("NoNorm")
    with torch.no_grad():
        graph.get_parameter("conv.weight")[0] = 1e-30
        graph.get_parameter("conv.weight")[1] = 1e30
    equalized = equalize(graph)
    ratio = graph.get_parameter("conv.bias") / equalized.get_parameter("conv.bias")
    assert ratio[0].item() == pytest.approx(1e-8, rel=1e-5)
    assert ratio[1].item() == pytest.approx(1e8, rel=1e-5)


def test_a_weight_that_is_not_finite_is_named() -> None:
    graph = folded_graph("Tiny")
    with torch.no_grad():
        graph.get_parameter("conv2.weight")[0, 0, 0, 0] = float("nan")
    with pytest.raises(ModelError, match="conv2"):
        equalize(graph)


def test_equalizing_twice_changes_nothing_more() -> None:
    once = equalize(folded_graph("Grouped"), replace_relu6=True)
    twice = equalize(once)
    for name, value in once.named_parameters():
        torch.testing.assert_close(twice.get_parameter(name), value, rtol=1e-4, atol=1e-5)


def test_one_scale_per_tensor_loses_less() -> None:
    """What it is for: channels of very different size under one 4-bit scale."""
    graph = folded_graph(randomized(NETWORKS["Tiny"](), images(8)))
    factors = torch.tensor([1e-2, 1.0, 10.0, 1e2])
    with torch.no_grad():
        graph.get_parameter("conv1.weight").mul_(factors.view(-1, 1, 1, 1))
        graph.get_parameter("conv1.bias").mul_(factors)
        graph.get_parameter("conv2.weight").div_(factors.view(-1, 1, 1))
    scheme = Scheme(weights=4, activations=32, weight_granularity="tensor")
    x = images(32)
    expected = graph(x)
    plain, better = (
        (insert_quantizers(g, scheme)(x) - expected).square().mean().item()
        for g in (graph, equalize(graph))
    )
    assert better < plain / 4
