"""Networks that normalise their images inside `forward`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import datafree
from datafree.config import InputSpec
from datafree.graph.capture import capture
from datafree.graph.normalisation import as_taken, behind_normalisation

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.5])
PLAIN = InputSpec(shape=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3, classes=5)


class Network(nn.Module):
    """Something in front of a convolution with batch norm."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)
        for _ in range(20):
            self.norm(self.conv(torch.randn(16, 3, 8, 8)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(self.change(x)))).mean((2, 3)))


def normalise(x: Tensor) -> Tensor:
    return (x - MEAN.view(1, 3, 1, 1)) / STD.view(1, 3, 1, 1)


def plain(x: Tensor) -> Tensor:
    return x


def test_the_part_behind_it() -> None:
    graph = capture(Network(normalise).eval(), PLAIN)
    inner, spec = behind_normalisation(graph, PLAIN)
    assert spec.mean == pytest.approx(MEAN.tolist(), abs=1e-6)
    assert spec.std == pytest.approx(STD.tolist(), abs=1e-6)
    images = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(inner(normalise(images)), graph(images))
    assert sum(node.op == "call_function" for node in inner.graph.nodes) == 1  # the mean


CASES: list[tuple[Callable[[Tensor], Tensor], float, float]] = [
    (lambda x: 2 * x - 1, 0.5, 0.5),
    (lambda x: (x * 255 - 127.5) / 51, 0.5, 0.2),
    (lambda x: torch.add(x, -0.25, alpha=2), 0.5, 1),
]


@pytest.mark.parametrize(("change", "mean", "std"), CASES)
def test_chains(change: Callable[[Tensor], Tensor], mean: float, std: float) -> None:
    _, spec = behind_normalisation(capture(Network(change).eval(), PLAIN), PLAIN)
    assert spec.mean == pytest.approx((mean,) * 3, abs=1e-6)
    assert spec.std == pytest.approx((std,) * 3, abs=1e-6)


def test_both_normalise() -> None:
    outer = PLAIN.model_copy(update={"mean": (0.5,) * 3, "std": (0.5,) * 3})
    graph = capture(Network(lambda x: (x + 1) / 2).eval(), outer)
    _, spec = behind_normalisation(graph, outer)
    assert spec.mean == pytest.approx((0,) * 3, abs=1e-6)
    assert spec.std == pytest.approx((1,) * 3, abs=1e-6)


OTHERS: list[Callable[[Tensor], Tensor]] = [plain, torch.sin, lambda x: 1 - x, lambda x: x * x]


@pytest.mark.parametrize("change", OTHERS)
def test_others_are_left_as_they_are(change: Callable[[Tensor], Tensor]) -> None:
    graph = capture(Network(change).eval(), PLAIN)
    inner, spec = behind_normalisation(graph, PLAIN)
    assert inner is graph and spec is PLAIN


RAW = InputSpec(shape=(3, 8, 8), mean=(0.0,) * 3, std=(1 / 255,) * 3, classes=5)
FAR: list[tuple[float, float]] = [(0.0, 1 / 255), (0.5, 0.02), (0.449, 4.0), (-2.0, 0.5)]


@pytest.mark.parametrize(("mean", "std"), FAR)
def test_other_units_get_a_step_in_front(mean: float, std: float) -> None:
    """Photographs, as ImageNet's are normalised, become what the network takes."""
    given = RAW.model_copy(update={"mean": (mean,) * 3, "std": (std,) * 3})
    graph = capture(Network(plain).eval(), given)
    before = str(graph.graph)
    inner, spec = behind_normalisation(graph, given)
    assert str(graph.graph) == before
    pixels = torch.rand(4, 3, 8, 8)
    normalised = (pixels - torch.tensor(spec.mean[0])) / spec.std[0]
    assert float(normalised.std()) == pytest.approx(1.28, abs=0.1)  # uniform: 0.289 / 0.226
    answers = graph((pixels - mean) / std)
    torch.testing.assert_close(inner(normalised), answers, rtol=1e-4, atol=1e-4)
    made = as_taken(graph, given)(normalised)
    torch.testing.assert_close(made, (pixels - mean) / std, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 0.5), (0.45, 0.25), (0.1307, 0.3081)])
def test_usual_units_stay(mean: float, std: float) -> None:
    given = RAW.model_copy(update={"mean": (mean,) * 3, "std": (std,) * 3})
    graph = capture(Network(plain).eval(), given)
    assert behind_normalisation(graph, given) == (graph, given)


@pytest.mark.integration
@pytest.mark.parametrize("method", ["noise", "zeroq", "dsg", "genie"])
def test_images_of_raw_pixels_are_those_of_normalised_ones(method: str) -> None:
    """The same network, told that it takes 0 to 255, and with that inside."""
    options = {} if method == "noise" else {"iterations": 5}

    def raw(x: Tensor) -> Tensor:
        return (x / 255 - 0.449) / 0.226

    told: dict[str, Any] = {
        "input_shape": (3, 8, 8), "method": method, "method_options": options, "images": 8,
        "excite": False,
    }  # fmt: skip
    inside = datafree.synthesize(Network(raw).eval(), **told, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    outside = datafree.synthesize(
        Network(plain).eval(), **told, mean=(0.449,) * 3, std=(0.226,) * 3
    )
    torch.testing.assert_close(raw(inside.images), outside.images, rtol=1e-3, atol=1e-3)
    plainly = datafree.synthesize(
        Network(plain).eval(), **told, mean=(0.0,) * 3, std=(1 / 255,) * 3
    )
    assert float(plainly.images.std()) > 30


@pytest.mark.integration
@pytest.mark.parametrize("method", ["noise", "zeroq", "dsg"])
def test_images_are_those_of_the_network_without_it(method: str) -> None:
    options = {} if method == "noise" else {"iterations": 5}
    told: dict[str, Any] = {
        "input_shape": (3, 8, 8),
        "method": method,
        "method_options": options,
        "images": 8,
    }
    inside = datafree.synthesize(Network(normalise).eval(), **told, excite=False)
    outside = datafree.synthesize(
        Network(plain).eval(), **told, excite=False, mean=tuple(MEAN.tolist()),
        std=tuple(STD.tolist()),
    )  # fmt: skip
    torch.testing.assert_close(normalise(inside.images), outside.images, rtol=1e-3, atol=1e-3)
