"""A network whose numbers leave float32 is refused by the layer it happens in."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from datafree.errors import CaptureError, ModelError
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.overflow import described, layer_behind, source_of_overflow
from datafree.graph.statistics import layer_statistics
from datafree.graph.taps import stored_statistics
from datafree.testing.networks import SPEC, images


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.last(torch.exp(self.second(x)).mean((2, 3)))


def network() -> Net:
    torch.manual_seed(0)
    net = Net().train()
    for _ in range(3):
        net(images(16, 1))
    return net.eval()


def variance(net: Net, value: float, eps: float) -> None:
    assert net.norm.running_var is not None
    net.norm.running_var[1] = value
    net.norm.eps = eps


@pytest.mark.parametrize(
    ("value", "eps", "root"), [(-1.0, 1e-5, "-1"), (0.0, 0.0, "0"), (-1e-5, 0.0, "-1e-05")]
)
def test_a_batch_norm_without_a_root_is_named(value: float, eps: float, root: str) -> None:
    net = network()
    variance(net, value, eps)
    with pytest.raises(CaptureError, match=rf"norm divides by the root of {root} in 1 of its 4"):
        capture(net, SPEC)


@pytest.mark.parametrize(("value", "eps"), [(0.0, 1e-5), (1e-3, 0.0)])
def test_small_variances_are_taken(value: float, eps: float) -> None:
    net = network()
    variance(net, value, eps)
    graph = capture(net, SPEC)
    folded = fold_batch_norms(graph)
    torch.testing.assert_close(folded(images(2, 3)), net(images(2, 3)), rtol=1e-4, atol=1e-4)


def test_a_variance_a_little_below_0_tells_no_nan() -> None:
    net = network()
    variance(net, -2e-6, 1e-5)
    graph = capture(net, SPEC)
    assert stored_statistics(graph.get_submodule("norm"))[1].isfinite().all()  # pyright: ignore
    (told,) = layer_statistics(graph).values()
    assert told.std[1] == 0
    assert told.std.isfinite().all()


BREAKS: dict[str, Callable[[Net], object]] = {
    "layer 'first'": lambda net: net.first.weight.data.fill_(3e38),
    "layer 'norm'": lambda net: net.norm.weight.data.fill_(3e38),
    "layer 'second'": lambda net: net.second.bias.data.fill_(float("inf")),  # pyright: ignore
    "the operator exp": lambda net: net.second.bias.data.fill_(1e4),  # pyright: ignore
    "layer 'last'": lambda net: net.last.weight.data.fill_(-3e38),
}


@pytest.mark.parametrize("where", list(BREAKS))
def test_the_first_that_overflows_is_found(where: str) -> None:
    graph = capture(network(), SPEC)
    assert source_of_overflow(graph, images(4, 2)) is None
    BREAKS[where](graph)  # pyright: ignore[reportArgumentType] - paths are the network's own
    found = source_of_overflow(graph, images(4, 2))
    assert found is not None
    assert found.startswith(where)


def test_nan_is_refused_by_the_layer_it_comes_from() -> None:
    net = network()
    net.second.weight.data.fill_(3e38)
    with pytest.raises(CaptureError, match="NaN for Gaussian images: layer 'second' is the first"):
        capture(Both(net), SPEC)


class Both(nn.Module):
    """What is infinite minus what is infinite."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.first, self.second, self.last = net.first, net.second, net.last

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        return self.last((x - x).mean((2, 3)))


def test_a_mask_of_minus_infinity_is_no_overflow() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(3 * 64, 5)

        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(1)
            mask = torch.cat([torch.zeros(96), torch.full((96,), -float("inf"))])
            return self.last(torch.softmax(flat + mask, 1) * 1e38 * 1e38)

    with pytest.raises(CaptureError, match="the operator mul"):
        capture(Masked().eval(), SPEC)


def test_folding_beyond_float32_names_layer_and_norm() -> None:
    net = network()
    net.first.weight.data[0] = 1e30
    net.norm.weight.data[0] = 1e30
    graph = capture(network(), SPEC)
    graph.load_state_dict(net.state_dict(), strict=False)
    with pytest.raises(ModelError, match="layer 'first' with its batch norm 'norm' folded into"):
        fold_batch_norms(graph)


def test_operators_are_described_by_the_layer_before() -> None:
    graph = capture(network(), SPEC)
    node = next(node for node in graph.graph.nodes if "exp" in node.name)
    assert layer_behind(graph, node) == "second"
    assert described(graph, node).endswith("behind layer 'second'")
    start = next(iter(graph.graph.nodes))
    assert layer_behind(graph, start) is None
    assert described(graph, start) == "the input"
