from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, fx, nn

from datafree.config import InputSpec, Scheme
from datafree.corrections._pairs import find_pairs
from datafree.corrections.equalize import equalize, equalize_with_factors
from datafree.errors import ModelError
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.testing.watching import fingerprint
from networks import NETWORKS, SPEC, Grouped, build, captured, images


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


def test_factors_are_what_outputs_were_divided_by() -> None:
    graph = folded_graph("Grouped")
    equalized, factors = equalize_with_factors(graph, replace_relu6=True)
    assert set(factors) == {"stem", "depthwise", "pointwise", "grouped"}
    for path, factor in factors.items():
        before, after = graph.get_parameter(f"{path}.bias"), equalized.get_parameter(f"{path}.bias")
        torch.testing.assert_close(after.double() * factor, before.double())
        assert float((factor - 1).abs().max()) > 0.1


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
    graph = folded_graph("Tiny")
    factors = torch.tensor([1e-2, 1.0, 10.0, 1e2])
    with torch.no_grad():
        graph.get_parameter("conv1.weight").mul_(factors.view(-1, 1, 1, 1))
        graph.get_parameter("conv1.bias").mul_(factors)
        graph.get_parameter("conv2.weight").div_(factors.view(-1, 1, 1))
    scheme = Scheme(bits="W4A32", weight_granularity="tensor")
    x = images(32)
    expected = graph(x)
    plain, better = (
        (insert_quantizers(g, scheme)(x) - expected).square().mean().item()
        for g in (graph, equalize(graph))
    )
    assert better < plain / 4


def test_widths_become_equal() -> None:
    """Nagel et al.'s range for affine grids: max - min of a channel, one channel at a time."""
    graph = folded_graph("Tiny")
    by_width, by_size = equalize(graph, by="width"), equalize(graph)
    assert relative(by_width(images(5)), graph(images(5))) < 1e-5
    for made, equal in ((by_width, True), (by_size, False)):
        rows = made.get_submodule("conv1").weight
        columns = made.get_submodule("conv2").weight
        assert isinstance(rows, Tensor) and isinstance(columns, Tensor)
        gaps: list[float] = []
        for channel in range(len(rows)):
            one = (rows[channel].max() - rows[channel].min()).item()
            two = (columns[:, channel].max() - columns[:, channel].min()).item()
            gaps.append(abs(one - two) / max(one, two))
        assert (max(gaps) < 1e-4) == equal
