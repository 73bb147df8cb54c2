from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from datafree.config import InputSpec
from datafree.graph.branches import merge_branches
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import quantizable_layers
from datafree.graph.taps import BatchNorm, batch_norms
from datafree.testing.watching import fingerprint
from networks import SPEC, images, randomized

Body = Callable[[Any, Tensor], Tensor]


def conv(taps: int = 3, out: int = 8, **options: Any) -> nn.Module:
    options.setdefault("padding", taps // 2)
    return nn.Conv2d(8, out, taps, **options)


def with_norm(taps: int = 3, **options: Any) -> nn.Module:
    layer = conv(taps, **options)
    return nn.Sequential(layer, nn.BatchNorm2d(8))


class Net(nn.Module):
    """A stem, named layers, what is computed from them, a classifier."""

    def __init__(self, body: Body, **layers: nn.Module) -> None:
        super().__init__()
        self.stem, self.linear = nn.Conv2d(3, 8, 3, padding=1), nn.LazyLinear(5)
        self.gain = nn.Parameter(torch.linspace(-1, 2, 8).view(8, 1, 1))
        self.body = body
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.linear(torch.relu(self.body(self, x)).mean((2, 3)))


def graph_of(body: Body, **layers: nn.Module) -> fx.GraphModule:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = Net(body, **layers)
        net(images(2))
        return capture(randomized(net, images(8)), SPEC)


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / (expected.max() - expected.min())).item()


def check(graph: fx.GraphModule, layers: list[str]) -> fx.GraphModule:
    """The folded graph, after comparing its layers and its outputs."""
    before = fingerprint(graph)
    folded = fold_batch_norms(graph)
    assert quantizable_layers(folded) == ["stem", *layers, "linear"]
    assert relative(folded(images(5, 1)), graph(images(5, 1))) < 1e-5
    assert fingerprint(graph) == before
    exact = graph.double()
    x = images(5, 1).double()
    assert relative(fold_batch_norms(exact)(x), exact(x)) < 1e-12
    return folded


def all_added(net: Any, x: Tensor) -> Tensor:
    names = [name for name, _ in net.named_children() if name not in ("stem", "linear")]
    total = net.get_submodule(names[0])(x)
    for name in names[1:]:
        total = total + net.get_submodule(name)(x)
    return total


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_repvgg_blocks(groups: int) -> None:
    """3 x 3, 1 x 1 and a batch norm, added: one 3 x 3 convolution of the same groups."""
    graph = graph_of(
        all_added, point=with_norm(1, groups=groups), wide=with_norm(3, groups=groups),
        skip=nn.BatchNorm2d(8),
    )  # fmt: skip
    folded = check(graph, ["wide.0"])
    assert not batch_norms(folded)
    merged = folded.get_submodule("wide.0")
    assert isinstance(merged, nn.Conv2d)
    assert (merged.groups, merged.kernel_size, merged.padding) == (groups, (3, 3), (1, 1))
    assert "wide_0" in [node.name for node in folded.graph.nodes]


def test_a_repvgg_block_by_hand() -> None:
    """Equations 3 to 5 of the paper, entry by entry."""
    graph = graph_of(
        all_added, wide=with_norm(3, bias=False), point=with_norm(1, bias=False),
        skip=nn.BatchNorm2d(8),
    )  # fmt: skip
    merged = fold_batch_norms(graph)
    weight, bias = (merged.get_parameter(f"wide.0.{name}") for name in ("weight", "bias"))
    norms = batch_norms(graph)
    a: dict[str, Tensor] = {}
    offset: dict[str, Tensor] = {}
    for name, norm in norms.items():
        assert norm.running_var is not None and norm.running_mean is not None
        a[name] = norm.weight / (norm.running_var + norm.eps).sqrt()
        offset[name] = norm.bias - norm.running_mean * a[name]
    wide, point = graph.get_parameter("wide.0.weight"), graph.get_parameter("point.0.weight")
    assert set(a) == {"wide.1", "point.1", "skip"}
    for o in range(8):
        for i in range(8):
            expected = a["wide.1"][o] * wide[o, i]
            expected[1, 1] += a["point.1"][o] * point[o, i, 0, 0] + (o == i) * a["skip"][o]
            torch.testing.assert_close(weight[o, i], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(bias, sum(offset.values()), rtol=1e-5, atol=1e-6)


def test_a_stride_is_that_of_all_branches() -> None:
    graph = graph_of(all_added, wide=with_norm(3, stride=2), point=with_norm(1, stride=2))
    merged = check(graph, ["wide.0"]).get_submodule("wide.0")
    assert isinstance(merged, nn.Conv2d)
    assert merged.stride == (2, 2)


def test_mobileone_blocks() -> None:
    """Depthwise 3 x 3 several times, depthwise 1 x 1, a batch norm, and the 0 sums start from."""
    graph = graph_of(
        lambda net, x: 0.0 + all_added(net, x), scale=with_norm(1, groups=8),
        skip=nn.BatchNorm2d(8), one=with_norm(3, groups=8), two=with_norm(3, groups=8),
        three=with_norm(3, groups=8),
    )  # fmt: skip
    merged = check(graph, ["one.0"]).get_submodule("one.0")
    assert isinstance(merged, nn.Conv2d)
    assert merged.weight.shape == (8, 1, 3, 3)


def test_fastvit_mixers() -> None:
    """``x + gain (mixer(x) - norm(x))``: factors, differences, the tensor itself."""
    graph = graph_of(
        lambda net, x: x + net.gain * (net.one(x) + net.two(x) - net.skip(x)),
        one=with_norm(3, groups=8), two=with_norm(1, groups=8), skip=nn.BatchNorm2d(8),
    )  # fmt: skip
    folded = check(graph, ["one.0"])
    assert not [n for n in folded.graph.nodes if n.op == "get_attr"]
    assert not hasattr(folded, "gain")


def test_acnet_crosses() -> None:
    graph = graph_of(
        all_added,
        across=nn.Conv2d(8, 8, (1, 3), padding=(0, 1)),
        down=nn.Conv2d(8, 8, (3, 1), padding=(1, 0)),
        square=conv(3),
    )
    check(graph, ["square"])


MERGED: list[tuple[Body, list[str]]] = [
    (lambda net, x: net.norm(net.one(x) + net.two(x)), ["one"]),
    (lambda net, x: net.norm(net.one(x) / 3 - net.two(x) * net.gain + 0.5), ["one"]),
    (lambda net, x: -(net.one(x) - x) + net.two(x), ["one"]),
    (lambda net, x: net.one(x) + net.one_more(x).tanh() + net.two(x), ["one", "one_more"]),
    (lambda net, x: net.one(x) - net.one_more(x).tanh() + x * net.gain, ["one", "one_more"]),
    (lambda net, x: net.one(x) + F.avg_pool2d(x, 3, 1, 1), ["one"]),
    (lambda net, x: net.one(x) + net.norm(F.avg_pool2d(x, 3, 1, 1)), ["one"]),
    (lambda net, x: net.one(x) + F.avg_pool2d(x, 3, 1, 1, False, True, 7), ["one"]),
    (lambda net, x: net.one(x) + net.two(x) + x.mean((2, 3), keepdim=True), ["one"]),
    (lambda net, x: net.one(x) + 1.5, ["one"]),
    (lambda net, x: net.one(x) + net.gain, ["one"]),
]


@pytest.mark.parametrize(("body", "layers"), MERGED)
def test_what_else_is_one_convolution(body: Body, layers: list[str]) -> None:
    check(graph_of(body, one=conv(3), one_more=conv(3), two=conv(1), norm=nn.BatchNorm2d(8)),
          layers)  # fmt: skip


def test_two_tensors_give_two_convolutions() -> None:
    def body(net: Any, x: Tensor) -> Tensor:
        y = torch.relu(net.stem2(x))
        return net.a(x) + net.c(y) + net.b(x) - net.d(y)

    graph = graph_of(body, stem2=conv(3), a=conv(3), b=conv(1), c=conv(1), d=conv(3))
    check(graph, ["stem2", "a", "d"])


def test_dense_branches_merge_beside_a_depthwise_one() -> None:
    """Not all three: a dense 3 x 3 would cost nine times the dense 1 x 1."""
    graph = graph_of(all_added, deep=conv(3, groups=8), one=conv(1), two=conv(1), x=nn.Identity())
    check(graph, ["deep", "one"])


def test_dilated_taps_hold_a_single_one() -> None:
    graph = graph_of(all_added, a=conv(3, padding=2, dilation=2), b=conv(1))
    check(graph, ["a"])


def test_a_name_that_one_of_several_constants_has_stays() -> None:
    """The factor of the merged sum is read by another step too."""
    graph = graph_of(
        lambda net, x: (net.one(x) + net.two(x)) * net.gain + torch.tanh(x * net.gain),
        one=conv(3), two=conv(1),
    )  # fmt: skip
    folded = check(graph, ["one"])
    assert [n.target for n in folded.graph.nodes if n.op == "get_attr"] == ["gain"]


ALONE: list[tuple[Body, list[str]]] = [
    (lambda net, x: net.one(x) + x, ["one"]),  # a residual connection
    (lambda net, x: net.one(x) * 2 + x / 3, ["one"]),
    (lambda net, x: net.two(x) + net.deep(x), ["two", "deep"]),  # nine times as dear
    (lambda net, x: net.two(x) + F.avg_pool2d(x, 3, 1, 1), ["two"]),
    (lambda net, x: net.one(x) + F.avg_pool2d(x, 3, 1, 1, False, False), ["one"]),
    (lambda net, x: net.one(x) + F.max_pool2d(x, 3, 1, 1), ["one"]),
    (lambda net, x: net.one(x) + net.dilated(x), ["one", "dilated"]),
    (lambda net, x: net.one(x) + net.two(x.tanh()), ["one", "two"]),
    (lambda net, x: net.one(x) + net.one(x).tanh(), ["one"]),
    (lambda net, x: net.one(x) + net.one(x.tanh()), ["one"]),  # called twice
    (lambda net, x: net.two(net.one(x)), ["one", "two"]),  # one behind the other
    (lambda net, x: net.one(x) * net.two(x), ["one", "two"]),
    (lambda net, x: net.norm(x) + x, []),
    (lambda net, x: net.thin(x) + net.one(x), ["thin", "one"]),  # one channel for all
    (lambda net, x: (y := net.one(x)) + net.two(x) + y.mean((2, 3), keepdim=True), ["one", "two"]),
    (lambda net, x: net.mirrored(x) + net.two(x), ["mirrored", "two"]),
]


@pytest.mark.parametrize(("body", "layers"), ALONE)
def test_what_is_left_alone(body: Body, layers: list[str]) -> None:
    graph = graph_of(
        body, one=conv(3), two=conv(1), deep=conv(3, groups=8), thin=conv(1, out=1),
        dilated=conv(3, padding=2, dilation=2), norm=nn.BatchNorm2d(8),
        mirrored=conv(3, padding_mode="reflect"),
    )  # fmt: skip
    folded = fold_batch_norms(graph)
    assert quantizable_layers(folded) == ["stem", *layers, "linear"]
    assert relative(folded(images(4)), graph(images(4))) < 1e-5


def test_nothing_is_merged_where_values_are_written_over() -> None:
    def body(net: Any, x: Tensor) -> Tensor:
        y = net.one(x)
        x[:, 0] += 1.0
        return y + net.two(x)

    graph = graph_of(body, one=conv(3), two=conv(1))
    assert quantizable_layers(fold_batch_norms(graph)) == ["stem", "one", "two", "linear"]


def test_sequences_and_volumes() -> None:
    class Volume(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv1d(3, 6, 5, padding=2), nn.Conv1d(3, 6, 1, bias=False)
            self.c, self.d = nn.Conv3d(6, 6, 3, padding=1), nn.Conv3d(6, 6, 1)
            self.linear = nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(2)
            y = torch.relu(self.a(x) + self.b(x)).view(-1, 6, 4, 4, 4)
            return self.linear(torch.relu(self.c(y) + self.d(y)).mean((2, 3, 4)))

    graph = capture(Volume().eval(), SPEC)
    folded = fold_batch_norms(graph)
    assert quantizable_layers(folded) == ["a", "c", "linear"]
    assert relative(folded(images(4)), graph(images(4))) < 1e-5


def test_folding_can_leave_branches() -> None:
    graph = graph_of(all_added, wide=with_norm(3), point=with_norm(1))
    folded = fold_batch_norms(graph, branches=False)
    assert quantizable_layers(folded) == ["stem", "wide.0", "point.0", "linear"]
    assert not batch_norms(folded)


def test_records_name_what_was_merged() -> None:
    graph = graph_of(
        lambda net, x: net.one(x) - 2 * net.norm(x) + 0.25,
        one=conv(3), norm=nn.BatchNorm2d(8),
    )  # fmt: skip
    _, (record,) = merge_branches(graph)
    assert record.path == "one"
    assert record.told is not None
    assert [(path, float(factor)) for path, factor in record.told] == [("one", 1), ("norm", -2)]
    assert float(record.shift) == 0.25
    ((path, kernel),) = record.kernels
    assert path == "one"
    assert bool((kernel.weight == 1).all())


def test_an_inner_sum_merges_where_the_outer_one_cannot() -> None:
    spec = InputSpec(shape=(3, 9, 9), mean=SPEC.mean, std=SPEC.std, classes=5)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = Net(
            lambda net, x: net.norm(net.one(x) + net.two(x) + x.tanh()),
            one=conv(3), two=conv(1), norm=nn.BatchNorm2d(8),
        )  # fmt: skip
        net(images(2, 0, spec.shape))
        graph = capture(randomized(net, images(8, 0, spec.shape)), spec)
    folded = fold_batch_norms(graph)
    assert quantizable_layers(folded) == ["stem", "one", "linear"]
    (left,) = batch_norms(folded).values()
    assert isinstance(left, BatchNorm)
    x = images(4, 1, spec.shape)
    assert relative(folded(x), graph(x)) < 1e-5
