from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.moments import Moments
from datafree.graph.propagate import propagate
from datafree.graph.statistics import layer_statistics
from datafree.testing.watching import fingerprint
from networks import NETWORKS, SPEC, captured, images, randomized


class Everything(nn.Module):
    """Every step whose moments are known, and some whose are not; `path` chooses."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.one, self.bn1 = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.two, self.bn2 = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.last = nn.LazyConv2d(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.relu(self.bn1(self.one(x))), self.bn2(self.two(x))
        y = getattr(self, self.path)(a, b)
        # Both are read, or capture would leave one out.
        return self.last(y).mean((2, 3)) + (a.mean((1, 2, 3)) + b.mean((1, 2, 3)))[:, None]

    def plus(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def twice(self, a: Tensor, b: Tensor) -> Tensor:
        return b + b

    def cat(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat((a, b), 1)

    def average(self, a: Tensor, b: Tensor) -> Tensor:
        return F.avg_pool2d(a, 2) + F.adaptive_avg_pool2d(b, 4)

    def mean(self, a: Tensor, b: Tensor) -> Tensor:
        return a.mean((2, 3), keepdim=True) + 2

    def cropped(self, a: Tensor, b: Tensor) -> Tensor:
        return F.pad(a[:, :, ::2, 1:], (1, 0, 0, 0, 1, 2))

    def maximum(self, a: Tensor, b: Tensor) -> Tensor:
        return F.max_pool2d(a, 2)

    def gate(self, a: Tensor, b: Tensor) -> Tensor:
        return a * torch.sigmoid(b)

    def shuffled(self, a: Tensor, b: Tensor) -> Tensor:
        return a.view(-1, 2, 2, 8, 8).transpose(1, 2).reshape(-1, 4, 8, 8)

    def other(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cumsum(a, 2)


def before_last(path: str) -> tuple[Moments, Moments, Moments]:
    """Moments of the two branches and of what `path` makes of them."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = Everything(path)
        model(images(4))
        graph = capture(randomized(model, images(8)), SPEC)
    folded = fold_batch_norms(graph)
    found = propagate(folded, layer_statistics(graph), SPEC)
    relu = next(n for n in folded.graph.nodes if "relu" in n.name)
    last = next(n for n in folded.graph.nodes if n.target == "last")
    return found[relu.name], found["two"], found[last.all_input_nodes[0].name]


def test_sums() -> None:
    a, b, both = before_last("plus")
    torch.testing.assert_close(both.mean, a.mean + b.mean)
    torch.testing.assert_close(both.std, torch.hypot(a.std, b.std))


def test_a_tensor_added_to_itself() -> None:
    _, b, both = before_last("twice")
    torch.testing.assert_close(both.mean, 2 * b.mean)
    assert (both.high >= b.high).all()


def test_concatenations() -> None:
    a, b, both = before_last("cat")
    torch.testing.assert_close(both.mean, torch.cat((a.mean, b.mean)))
    torch.testing.assert_close(both.low, torch.cat((a.low, b.low)))


def test_a_tensor_beside_itself() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            self.last = nn.Conv2d(8, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.conv(x))
            return self.last(torch.cat([y, y], 1)).mean((2, 3))

    graph = capture(randomized(Doubled(), images(8)), SPEC)
    found = propagate(fold_batch_norms(graph), layer_statistics(graph), SPEC)
    (name,) = [name for name in found if name.startswith("cat")]
    assert len(found[name].mean) == 8
    torch.testing.assert_close(found[name].mean[:4], found[name].mean[4:])


def test_slopes_by_channel_behind_what_is_not_known() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.PReLU(4), nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    graph = capture(model.eval(), SPEC)
    found = propagate(fold_batch_norms(graph), layer_statistics(graph), SPEC)
    assert any(len(moments.mean) == 4 and not moments.has_range for moments in found.values())


@pytest.mark.parametrize(("path", "number"), [("average", 0), ("mean", 2)])
def test_averages_keep_the_mean(path: str, number: float) -> None:
    a, b, result = before_last(path)
    torch.testing.assert_close(result.mean, a.mean + (b.mean if path == "average" else number))
    assert result.has_range


def test_cropping_and_padding() -> None:
    a, _, result = before_last("cropped")
    zero = torch.zeros(1, dtype=torch.float64)
    torch.testing.assert_close(result.mean, torch.cat((zero, a.mean, zero, zero)))
    torch.testing.assert_close(result.high, torch.cat((zero, a.high, zero, zero)))


def test_a_maximum_and_a_gate_have_a_range_only() -> None:
    a, b, result = before_last("maximum")
    assert torch.equal(result.high, a.high)
    assert result.mean.isnan().all()
    a, b, result = before_last("gate")
    torch.testing.assert_close(result.high, a.high * torch.sigmoid(b.high))
    assert result.mean.isnan().all()


def test_moved_channels_share_a_range() -> None:
    a, _, result = before_last("shuffled")
    assert float(result.high.max()) == float(a.high.max())
    assert result.mean.isnan().all()


def test_what_is_not_known_is_not_guessed() -> None:
    _, _, result = before_last("other")
    assert result.mean.isnan().all()
    assert not result.has_range


def test_a_layer_without_batch_norm_has_a_mean_only() -> None:
    graph = captured("Tiny")
    folded = fold_batch_norms(graph)
    before = fingerprint(folded)
    found = propagate(folded, layer_statistics(graph), SPEC)
    assert fingerprint(folded) == before
    linear = folded.get_submodule("linear")
    assert isinstance(linear, nn.Linear)
    expected = linear.double()(found["mean"].mean)
    torch.testing.assert_close(found["linear"].mean, expected.detach())
    assert not found["linear"].has_range
    assert found["conv1"].mean.shape == (4,)
    assert torch.isnan(found["x"].mean).all()


@pytest.mark.parametrize("name", list(NETWORKS))
def test_every_tensor_of_every_network_has_moments(name: str) -> None:
    graph = captured(name)
    folded = fold_batch_norms(graph)
    found = propagate(folded, layer_statistics(graph), SPEC)
    for node in folded.graph.nodes:
        if node.op == "call_module":
            assert node.name in found
            mean, high = found[node.name].mean, found[node.name].high
            assert mean.shape == high.shape
            assert mean.dtype == torch.float64
            assert not high.isnan().any()


def test_deviations_set_the_reach() -> None:
    graph = captured("Tiny")
    folded, statistics = fold_batch_norms(graph), layer_statistics(graph)
    found = propagate(folded, statistics, SPEC, deviations=2)["conv2"]
    torch.testing.assert_close(found.high - found.low, 4 * statistics["conv2"].std)
    assert math.isfinite(float(found.high.max()))
