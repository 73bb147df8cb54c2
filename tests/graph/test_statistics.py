from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.statistics import Normal, layer_statistics, rescaled
from networks import NETWORKS, SPEC, captured, images, randomized


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("Tiny", {"conv1", "conv2"}),
        ("InPlaceResidual", {"conv1", "bn2"}),  # conv2 is called twice
        ("Grouped", {"stem", "depthwise", "pointwise", "grouped"}),
        ("NormAfterActivation", {"bn1", "bn3"}),  # bn2 and bn4 fold forward
        ("SharedNorm", set[str]()),
        ("NoNorm", set[str]()),
        ("Branched", {"stem", "wide"}),  # two branches of the last sum have no norm
    ],
)
def test_paths_are_those_of_the_folded_graph(name: str, paths: set[str]) -> None:
    graph = captured(name)
    found = layer_statistics(graph)
    called = {str(node.target) for node in fold_batch_norms(graph).graph.nodes}
    assert set(found) <= called
    assert set(found) == paths


def test_mean_and_deviation_are_those_of_the_batch_norm() -> None:
    graph = captured("Tiny")
    norm = graph.get_submodule("bn1")
    assert isinstance(norm, torch.nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, -3, 1, 1]))
        norm.bias.copy_(torch.tensor([0.5, -1, 0, 4]))
        norm.running_var.copy_(torch.tensor([4.0, 1, 0, norm.eps]))
    found = layer_statistics(graph)["conv1"]
    torch.testing.assert_close(found.mean, torch.tensor([0.5, -1, 0, 4], dtype=torch.float64))
    expected = torch.tensor([2.0, 3, 0, 0.5**0.5], dtype=torch.float64)
    torch.testing.assert_close(found.std, expected, rtol=1e-4, atol=1e-9)


def test_affine_free_norms_are_standard() -> None:
    found = layer_statistics(captured("SamePadding"))
    assert set(found) == {"conv1", "conv2"}
    for normal in found.values():
        torch.testing.assert_close(normal.mean, torch.zeros(4, dtype=torch.float64))
        torch.testing.assert_close(
            normal.std, torch.ones(4, dtype=torch.float64), atol=1e-3, rtol=0
        )


def test_rescaling_touches_only_what_has_factors() -> None:
    one = Normal(torch.tensor([2.0, -4]), torch.tensor([1.0, 8]))
    scaled = rescaled({"a": one, "b": one}, {"a": torch.tensor([0.5, 4]), "z": torch.ones(9)})
    assert scaled["b"] is one
    assert scaled["a"].mean.tolist() == [4, -1]
    assert scaled["a"].std.tolist() == [2, 2]
    assert set(scaled) == {"a", "b"}


def test_of_two_batch_norms_in_a_row_the_second_counts() -> None:
    """Both fold into the convolution; what it returns then is what the second one returned."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4),
        nn.Flatten(), nn.Linear(256, 5),
    )  # fmt: skip
    model = randomized(model, images(8))
    nn.init.constant_(model.get_submodule("2").get_parameter("bias"), 7.0)
    graph = capture(model, SPEC)
    (found,) = layer_statistics(graph).values()
    torch.testing.assert_close(found.mean, torch.full((4,), 7.0, dtype=torch.float64))


def test_a_batch_norm_that_never_saw_data_tells_nothing() -> None:
    model = randomized(NETWORKS["Tiny"](), images(8))
    norm = model.get_submodule("bn2")
    assert isinstance(norm, nn.BatchNorm2d)
    norm.reset_running_stats()
    assert set(layer_statistics(capture(model, SPEC))) == {"conv1"}


def test_branches_that_became_one_convolution_return_their_sum() -> None:
    """Means add, and variances, as of branches that are not correlated."""
    graph = captured("Branched")
    means, variances = torch.zeros(8), torch.zeros(8)
    for name in ("bn1", "bn2", "skip"):
        norm = graph.get_submodule(name)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_var is not None
        means = means + norm.bias
        variances = variances + norm.weight**2 * norm.running_var / (norm.running_var + norm.eps)
    found = layer_statistics(graph)["wide"]
    torch.testing.assert_close(found.mean.float(), means)
    torch.testing.assert_close(found.std.float(), variances.sqrt())


class Scaled(nn.Module):
    """Branches with a factor, a difference, a number; and a norm behind a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.b, self.norm_b = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.c, self.d, self.norm = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(3 * self.norm_a(self.a(x)) - self.norm_b(self.b(x)) + 0.5)
        return self.linear(torch.relu(self.norm(self.c(x) + self.d(x)) - 2.0).mean((2, 3)))


def test_factors_and_numbers_of_a_sum_are_in_its_statistics() -> None:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        graph = capture(randomized(Scaled(), images(8)), SPEC)
    found = layer_statistics(graph)
    assert set(found) == {"a", "c"}
    one, two, after = (graph.get_submodule(name) for name in ("norm_a", "norm_b", "norm"))
    assert isinstance(one, nn.BatchNorm2d)
    assert isinstance(two, nn.BatchNorm2d)
    assert isinstance(after, nn.BatchNorm2d)
    torch.testing.assert_close(found["a"].mean.float(), 3 * one.bias - two.bias + 0.5)
    expected = (9 * one.weight**2 + two.weight**2).sqrt()
    torch.testing.assert_close(found["a"].std.float(), expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(found["c"].mean.float(), after.bias - 2)
    torch.testing.assert_close(found["c"].std.float(), after.weight, rtol=1e-3, atol=0)


class Twice(nn.Module):
    """One layer and its norm look at two halves of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        halves = [torch.relu(self.bn(self.conv(half))) for half in (x[..., :4], x[..., 4:])]
        return self.linear((halves[0] - halves[1]).mean((2, 3)))


def test_a_layer_called_twice_has_the_statistics_of_all_its_calls() -> None:
    network = randomized(Twice(), images(8))
    found = layer_statistics(capture(network, SPEC))
    assert set(found) == {"conv"}
    norm = network.get_submodule("bn")
    assert isinstance(norm, nn.BatchNorm2d)
    torch.testing.assert_close(found["conv"].mean, norm.bias.detach().double())
