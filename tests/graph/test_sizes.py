"""Sizes are read off the tensor at hand, so that no part of a graph reaches back to the input."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from datafree.config import InputSpec
from datafree.graph.blocks import find_blocks, output_name, subgraph
from datafree.graph.capture import capture
from datafree.graph.sizes import is_size, readers, values_read

SPEC = InputSpec(shape=(3, 8, 8), mean=(0, 0, 0), std=(1, 1, 1), classes=5)
Forward = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Two convolutions and a linear layer, put together by the test."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
        self.head = nn.Linear(16, 5)
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.mixed, self.small = nn.Linear(4, 4), nn.Linear(4, 5)
        self.way = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


def flattened(net: Net, x: Tensor) -> Tensor:
    x = net.second(torch.relu(net.first(x)))
    return net.head(x.view(x.size(0), -1))


def sized_by_the_input(net: Net, x: Tensor) -> Tensor:
    count = x.shape[0]
    x = net.second(torch.relu(net.first(x)))
    return net.head(x.reshape(count, 16))


def shuffled(net: Net, x: Tensor) -> Tensor:
    x = net.first(x)
    count, channels, height, width = x.size()
    x = x.view(count, 2, channels // 2, height, width).transpose(1, 2).contiguous()
    x = net.second(x.view(count, -1, height, width))
    return net.head(x.view(count, -1))


def with_token(net: Net, x: Tensor) -> Tensor:
    x = net.first(x).flatten(2).transpose(1, 2)
    x = net.mixed(torch.cat([net.token.expand(x.shape[0], -1, -1), x], 1))
    return net.small(x[:, 0])


def in_windows(net: Net, x: Tensor) -> Tensor:
    x = net.first(x).permute(0, 2, 3, 1)
    windows = net.mixed(x.reshape(-1, 4, 4))
    count = windows.shape[0] // 4
    return net.small(windows.view(count, 16, 4).mean(1))


def padded(net: Net, x: Tensor) -> Tensor:
    x = net.first(x)
    x = torch.cat([x[:, :2], torch.zeros(x.size(0), 2, 4, 4)], 1)
    x = net.second(x)
    return net.head(x.view(x.size(0), -1))


WAYS: dict[Forward, list[tuple[str, ...]]] = {
    flattened: [("first",), ("second",), ("head",)],
    sized_by_the_input: [("first",), ("second",), ("head",)],
    shuffled: [("first",), ("second",), ("head",)],
    with_token: [("first",), ("mixed",), ("small",)],
    in_windows: [("first",), ("mixed",), ("small",)],
    padded: [("first",), ("second",), ("head",)],
}


def graph_of(way: Forward) -> fx.GraphModule:
    torch.manual_seed(0)
    return capture(Net(way).eval(), SPEC)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_size_does_not_hold_the_input_open(way: Forward) -> None:
    graph = graph_of(way)
    (x,) = [node for node in graph.graph.nodes if node.op == "placeholder"]
    assert not any(is_size(user) for user in x.users)
    assert [block.layers for block in find_blocks(graph)] == WAYS[way]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_blocks_compose_to_the_network_for_any_batch(way: Forward, count: int) -> None:
    graph = graph_of(way)
    values = torch.randn(count, *SPEC.shape)
    expected = graph(values)
    for block in find_blocks(graph):
        values = subgraph(graph, block.start, block.end)(values)
    assert torch.equal(values, expected)
    assert block.end == output_name(graph)  # pyright: ignore[reportPossiblyUnboundVariable]


def written(net: Net, x: Tensor) -> Tensor:
    canvas = torch.zeros(x.size(0), 3, 8, 8)
    canvas[:, :, 1:] = x[:, :, 1:]
    x = net.second(torch.relu(net.first(canvas)))
    return net.head((x + canvas[:, :1, :2, :2]).view(x.size(0), -1))


def test_what_is_written_to_is_not_made_again() -> None:
    """A tensor of zeros that values were written into is a value, whatever made it."""
    torch.manual_seed(0)
    net = Net(written).eval()
    values = torch.randn(3, *SPEC.shape)
    assert torch.equal(capture(net, SPEC)(values), net(values))


def test_readers_of_values_and_of_sizes() -> None:
    graph = graph_of(flattened)
    (view,) = [node for node in graph.graph.nodes if node.name == "view"]
    (second,) = [node for node in graph.graph.nodes if node.name == "second"]
    assert len(second.users) == 2
    assert readers(second) == [view]
    assert values_read(view) == [second]


def test_a_block_never_ends_in_windows() -> None:
    """Windows are a multiple of the images: what is kept image by image cannot be cut there."""
    graph = graph_of(in_windows)
    values = torch.randn(3, *SPEC.shape)
    for block in find_blocks(graph):
        values = subgraph(graph, block.start, block.end)(values)
        assert len(values) == 3
