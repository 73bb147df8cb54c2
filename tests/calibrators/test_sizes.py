"""Ranges follow values of any size: a network's layers may differ by many orders of magnitude."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from datafree.calibrators.base import Calibrator, calibrate
from datafree.config import Scheme
from datafree.errors import ModelError
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.quant.grid import Grid, fake_quantize
from datafree.registry import available, load
from datafree.testing.networks import SPEC, images

NAMES = [name for name in available("datafree.calibrators") if name != "bn_statistics"]
GRID = Grid(4)


def made(name: str) -> Calibrator:
    return load("datafree.calibrators", name, Calibrator)()


def values(seed: int = 0) -> Tensor:
    return torch.randn(6, 50, generator=torch.Generator().manual_seed(seed))


def found(rule: Calibrator, *batches: Tensor) -> tuple[float, float]:
    state = None
    for batch in batches:
        state = rule.update(state, batch)
    low, high = rule.range(state, GRID)
    return float(low), float(high)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("power", [-110, -60, -30, 30, 60, 120])
def test_the_range_of_values_times_a_power_of_two_is_the_range_times_it(
    name: str, power: int
) -> None:
    factor = 2.0**power
    expected = found(made(name), values(0), values(1))
    actual = found(made(name), values(0) * factor, values(1) * factor)
    assert actual == pytest.approx([factor * end for end in expected], rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [3e38, 1e-20, 1e-40])
@pytest.mark.parametrize("sides", ["both", "up", "down"])
def test_at_the_ends_of_float32_scales_are_normal_numbers(
    name: str, size: float, sides: str
) -> None:
    batch = values().clamp(-1, 1)
    batch = {"both": batch, "up": batch.abs(), "down": -batch.abs()}[sides] * size
    low, high = found(made(name), batch, batch)
    assert math.isfinite(low)
    assert math.isfinite(high)
    scale, zero_point = GRID.parameters(torch.tensor(low), torch.tensor(high))
    assert torch.finfo(torch.float32).tiny <= scale < math.inf
    rounded = fake_quantize(batch, scale, zero_point, GRID)
    assert rounded.isfinite().all()
    if size > 1e-38:
        noise = (rounded.double() - batch.double()).square().sum()
        assert noise < 0.1 * batch.double().square().sum()


class Behind(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calm, self.loud = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.last = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.loud(torch.relu(self.calm(x))))
        return self.last(x.mean((2, 3)))


def test_what_is_not_finite_is_told_by_the_layer_that_returns_it() -> None:
    torch.manual_seed(0)
    graph = fold_batch_norms(capture(Behind().eval(), SPEC))
    graph.get_submodule("calm").weight.data.fill_(1.0)  # pyright: ignore
    graph.get_submodule("loud").weight.data.fill_(3e38)  # pyright: ignore
    student = insert_quantizers(graph, Scheme(bits="W8A8"), SPEC)
    with pytest.raises(ModelError, match=r"(layer|behind layer) 'loud' returns numbers that are"):
        calibrate(student, [1e6 * images(2, 0).abs()], made("minmax"))
