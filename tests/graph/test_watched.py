"""Statistics that a network tells itself, beside what hooks see and plain formulas say of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from datafree.graph.capture import capture
from datafree.graph.taps import batch_norms
from datafree.graph.watched import Statistics, watched
from datafree.tensors import fast_copy
from networks import SPEC, build, captured, images
from reference import batch_norm_inputs

NAMES = ["Tiny", "InPlaceResidual", "Grouped", "NormAfterActivation", "SharedNorm"]


def by_hand(model: nn.Module, x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Gaps of means, and deviations, of all batch norms' inputs side by side, in float64."""
    gaps: list[Tensor] = []
    deviations: list[Tensor] = []
    for norm, features in batch_norm_inputs(model, x):
        assert isinstance(norm, _BatchNorm) and norm.running_mean is not None
        values = features.double()
        rows = -1, values.shape[1]
        gaps.append(values.mean(dims).view(rows) - norm.running_mean)
        deviations.append((values.var(dims).view(rows) + 1e-6).sqrt())
    return torch.cat(gaps, 1).float(), torch.cat(deviations, 1).float()


def told(name: str, x: Tensor, *, together: bool) -> tuple[Tensor, Statistics]:
    network = watched(fast_copy(captured(name)), together=together)
    return network(x), network.statistics()


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_statistics_and_gradients_are_those_of_the_inputs(name: str, together: bool) -> None:
    model, x = build(name).requires_grad_(False), images(4, 1)
    given = x.clone().requires_grad_()
    answers, found = told(name, given, together=together)
    plain = x.clone().requires_grad_()
    gaps, deviations = by_hand(model, plain, (0, 2, 3) if together else (2, 3))
    torch.testing.assert_close(answers, model(x), rtol=1e-4, atol=1e-5)
    seen = found.gaps[:, : gaps.shape[1]], found.deviations[:, : gaps.shape[1]]  # of maps
    torch.testing.assert_close(seen[0], gaps, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen[1], deviations, rtol=1e-4, atol=1e-5)
    random = torch.Generator().manual_seed(2)
    weights = [torch.randn(part.shape, generator=random) for part in (gaps, deviations)]
    actual, expected = (
        (part[0] * weights[0]).sum() + (part[1] * weights[1]).sum()
        for part in (seen, (gaps, deviations))
    )
    (slope,) = torch.autograd.grad(actual + answers.square().sum(), [given])
    (right,) = torch.autograd.grad(expected + model(plain).square().sum(), [plain])
    torch.testing.assert_close(slope, right, rtol=1e-3, atol=1e-4)


def conv_and_norm(*, slope: float, offset: float) -> fx.GraphModule:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU6(), nn.Flatten())
    network.append(nn.Linear(4 * 6 * 6, 5))
    norm = network[1]
    assert isinstance(norm, nn.BatchNorm2d)
    for _ in range(30):
        network(torch.randn(16, 3, 8, 8))
    with torch.no_grad():
        norm.weight.fill_(1.0)
        norm.weight[0], norm.bias[0] = slope, offset
    spec = SPEC.model_copy(update={"shape": (3, 8, 8)})
    return capture(network.eval(), spec)


@pytest.mark.parametrize(
    ("slope", "offset", "folds"),
    [(1.0, 0.5, True), (-0.5, 0.0, True), (0.0, 1.0, False), (1e-6, 1.0, False)],
)
def test_norms_that_hide_their_input_stay(slope: float, offset: float, folds: bool) -> None:
    """What a channel without slope was given cannot be told from what it returns."""
    graph, x = conv_and_norm(slope=slope, offset=offset), torch.randn(3, 3, 8, 8)
    conv, norm = graph.get_submodule("0"), graph.get_submodule("1")
    assert isinstance(norm, _BatchNorm) and norm.running_mean is not None
    network = watched(fast_copy(graph))
    changed = network.network.get_submodule("0").get_parameter("weight")
    assert torch.equal(changed, conv.get_parameter("weight")) is not folds
    torch.testing.assert_close(network(x), graph(x), rtol=1e-4, atol=1e-5)
    found, values = network.statistics(), conv(x)
    torch.testing.assert_close(
        found.gaps, values.mean((2, 3)) - norm.running_mean, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(found.deviations, (values.var((2, 3)) + 1e-6).sqrt())


def test_no_norm_folds_into_a_layer_that_is_looked_at() -> None:
    graph = conv_and_norm(slope=1.0, offset=0.5)
    network = watched(fast_copy(graph), kept="0")
    for part in ("weight", "bias"):
        ours = network.network.get_submodule("0").get_parameter(part)
        assert torch.equal(ours, graph.get_submodule("0").get_parameter(part))


def test_what_it_is_made_of_is_the_callers_copy() -> None:
    teacher = captured("Tiny")
    network = watched(fast_copy(teacher))
    assert batch_norms(teacher) and not batch_norms(network)
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_answers_leave_the_statistics_of_the_pass_before() -> None:
    network, x = watched(fast_copy(captured("Tiny"))), images(3)
    expected = network(x)
    torch.testing.assert_close(network.answers(images(5, 2)), network(images(5, 2)))
    assert torch.equal(network(x), expected)
    network.answers(images(5, 2))
    assert len(network.statistics().gaps) == 3


def test_layers_with_one_value_are_told_together() -> None:
    """Of a single image they have no deviation, and none is missed."""
    torch.manual_seed(1)
    norm = nn.BatchNorm1d(6)
    network = nn.Sequential(nn.Flatten(), norm).eval()
    norm.running_var = torch.rand(6) + 0.5
    x = torch.randn(4, 6, 1, 1)
    watching = watched(fast_copy(network))
    watching(x)
    found = watching.statistics()
    assert watching.alike
    torch.testing.assert_close(found.gaps, x.flatten(1).mean(0)[None])
    torch.testing.assert_close(found.deviations, (x.flatten(1).var(0)[None] + 1e-6).sqrt())
    watching(x[:1])
    found = watching.statistics()
    torch.testing.assert_close(found.deviations[0], found.stored)


def test_shares_by_hand() -> None:
    found = Statistics(torch.zeros(1, 3), torch.zeros(1, 3), torch.ones(3), (2, 1))
    assert found.shares().tolist() == [0.5, 0.5, 1.0]
