from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from datafree.graph.taps import batch_norms, tap_batch_norms, tap_outputs
from datafree.testing.watching import fingerprint
from networks import build, captured, images


def test_the_inputs_of_batch_norms_in_execution_order() -> None:
    graph, x = captured("Tiny"), images(3)
    with tap_batch_norms(graph) as taps:
        graph(x)
        layers, features = [layer for layer, _ in taps], [feature for _, feature in taps]
    assert layers == [graph.get_submodule("bn1"), graph.get_submodule("bn2")]
    model = build("Tiny")
    first = model.get_submodule("conv1")(x)
    second = model.get_submodule("conv2")(torch.relu(model.get_submodule("bn1")(first)))
    assert torch.equal(features[0], first)
    assert torch.equal(features[1], second)


def test_order_is_that_of_execution_not_of_definition() -> None:
    class Swapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.late, self.early = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.late(self.early(x) + 1)

    net = Swapped().eval()
    assert list(batch_norms(net)) == ["late", "early"]
    with tap_batch_norms(net) as taps:
        net(images(1))
        assert [layer for layer, _ in taps] == [net.early, net.late]


def test_every_pass_starts_afresh_and_the_list_ends_empty() -> None:
    graph = captured("Tiny")
    with tap_batch_norms(graph) as taps:
        for count in (2, 5):
            graph(images(count))
            assert [len(feature) for _, feature in taps] == [count, count]
    assert taps == []


def test_a_layer_called_twice_is_there_twice() -> None:
    graph = captured("SharedNorm")
    with tap_batch_norms(graph) as taps:
        graph(images(2))
        (one, first), (two, second) = taps
    assert one is two
    assert not torch.equal(first, second)


def test_gradients_flow_back_through_the_taps() -> None:
    graph, x = captured("Tiny"), images(2).requires_grad_()
    with tap_batch_norms(graph) as taps:
        graph(x)
        (gradient,) = torch.autograd.grad(taps[1][1].sum(), x)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, None])
def test_hooks_are_gone_afterwards(error: type[BaseException] | None) -> None:
    graph = captured("Tiny")
    before, seen = fingerprint(graph), list[str]()

    def work() -> None:
        chosen = {"conv1": graph.get_submodule("conv1")}
        with tap_batch_norms(graph) as taps, tap_outputs(chosen, lambda n, _: seen.append(n)):
            graph(images(1))
            assert taps
            assert fingerprint(graph) != before
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(error):
            work()
    assert fingerprint(graph) == before
    graph(images(1))
    assert seen == ["conv1"]


def test_outputs_by_name() -> None:
    graph, seen = captured("Tiny"), dict[str, Tensor]()
    with tap_outputs({"logits": graph.get_submodule("linear")}, seen.__setitem__):
        logits = graph(images(2))
    assert torch.equal(seen["logits"], logits)
