from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from datafree.corrections.absorb import absorb_biases
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.statistics import Normal, layer_statistics
from datafree.testing.watching import fingerprint
from networks import NETWORKS, SPEC, captured, images


def statistics_of(layer: str, mean: list[float], std: float) -> dict[str, Normal]:
    means = torch.tensor(mean, dtype=torch.float64)
    return {layer: Normal(means, torch.full_like(means, std))}


def same_tensors(one: nn.Module, two: nn.Module) -> bool:
    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )


class Chain(nn.Module):
    """`first`, an activation, `second`, without padding; a linear layer behind a flattening."""

    def __init__(self, activation: nn.Module, second: nn.Module, *, flat: bool = False) -> None:
        super().__init__()
        self.first, self.activation, self.second = nn.Conv2d(3, 4, 1), activation, second
        self.flat = flat

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.first(x))
        return self.second(x.flatten(1)) if self.flat else self.second(x).mean((2, 3))


def folded(model: nn.Module) -> fx.GraphModule:
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    return fold_batch_norms(capture(model.eval(), SPEC))


SECONDS = {
    "convolution": (nn.Conv2d(4, 5, 3), False),
    "without bias": (nn.Conv2d(4, 5, 3, bias=False), False),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), False),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), False),
    "linear": (nn.Linear(4 * 64, 5), True),
}


@pytest.mark.parametrize("kind", list(SECONDS))
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6()])
def test_outputs_stay_where_nothing_is_below_the_threshold(
    kind: str, activation: nn.Module
) -> None:
    second, flat = SECONDS[kind]
    graph = folded(Chain(activation, second, flat=flat))
    x = images(6)
    with torch.no_grad():
        bias = graph.get_parameter("first.bias")
        bias.zero_()
        spread = float(graph.get_submodule("first")(x).abs().max())
        graph.get_parameter("first.weight").mul_(0.9 / spread)
        bias.copy_(torch.tensor([2.0, 4, 0.5, 1.5]))
    before = fingerprint(graph)
    statistics = statistics_of("first", [2, 4, 0.5, 1.5], 1 / 3)
    absorbed, known = absorb_biases(graph, statistics)
    assert fingerprint(graph) == before
    torch.testing.assert_close(absorbed(x), graph(x), rtol=1e-4, atol=1e-5)
    expected = torch.tensor([1.0, 1, 0.5, 1])  # c = (1, 3, 0, 0.5)
    torch.testing.assert_close(absorbed.get_parameter("first.bias"), expected)
    torch.testing.assert_close(known["first"].mean.float(), expected)
    assert torch.equal(known["first"].std, statistics["first"].std)


def test_by_hand() -> None:
    """c = 5 - 3 * 1 = 2; the second bias gains 2 times the sum of the kernel."""
    graph = folded(Chain(nn.ReLU(), nn.Conv2d(4, 1, 2)))
    second = graph.get_submodule("second")
    assert isinstance(second, nn.Conv2d)
    assert second.bias is not None
    with torch.no_grad():
        second.bias.fill_(10)
        second.weight.copy_(torch.arange(16.0).view(1, 4, 2, 2))
    absorbed, known = absorb_biases(graph, statistics_of("first", [1, 5, -9, 3], 1))
    assert absorbed.get_parameter("second.bias").item() == 10 + 2 * (4 + 5 + 6 + 7)
    assert known["first"].mean.tolist() == [1, 3, -9, 3]
    assert torch.equal(absorbed.get_parameter("second.weight"), second.weight)


def test_relu6_keeps_what_may_reach_its_upper_end() -> None:
    graph = folded(Chain(nn.ReLU6(), nn.Conv2d(4, 5, 1)))
    _, known = absorb_biases(graph, statistics_of("first", [2, 4, 5.5, 0.1], 0.5))
    assert known["first"].mean.tolist() == [1.5, 1.5, 5.5, 0.1]


@pytest.mark.parametrize("activation", [nn.LeakyReLU(0.1), nn.PReLU(), nn.SiLU(), nn.Identity()])
def test_other_activations_are_left_alone(activation: nn.Module) -> None:
    graph = folded(Chain(activation, nn.Conv2d(4, 5, 1)))
    absorbed, known = absorb_biases(graph, statistics_of("first", [9, 9, 9, 9], 1))
    assert same_tensors(absorbed, graph)
    assert known["first"].mean.tolist() == [9, 9, 9, 9]


@pytest.mark.parametrize("name", list(NETWORKS))
def test_without_high_biases_nothing_changes(name: str) -> None:
    graph = captured(name)
    plain = fold_batch_norms(graph)
    statistics = {
        path: Normal(normal.mean.clamp(max=0), normal.std)
        for path, normal in layer_statistics(graph).items()
    }
    absorbed, known = absorb_biases(plain, statistics)
    torch.testing.assert_close(absorbed(images(3)), plain(images(3)), rtol=0, atol=0)
    assert set(known) == set(statistics)


def test_layers_without_statistics_are_left_alone() -> None:
    graph = fold_batch_norms(captured("NoNorm"))
    absorbed, known = absorb_biases(graph, {})
    assert same_tensors(absorbed, graph)
    assert known == {}
