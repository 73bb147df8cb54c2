"""Counts against grids, on tensors that can be counted by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import fx, nn

from datafree.quant.grid import Grid
from datafree.quant.modules import ActivationQuantizer, Quantizer, quantize_layer
from datafree.report.histograms import activation_histograms, weight_histogram


def quantizer(grid: Grid, scale: float, zero_point: float = 0.0) -> Quantizer:
    found = Quantizer(grid)
    found.scale, found.zero_point = torch.tensor(scale), torch.tensor(zero_point)
    return found


def test_weights_are_counted_in_steps_and_those_beyond_the_grid_are_clipped() -> None:
    layer = nn.Linear(5, 2, bias=False)
    layer.weight.data = torch.tensor([[-0.8, 0.7, 0.74, 0.76, 2.0], [0.0, 0.1, 0.2, 0.3, -0.86]])
    found = weight_histogram(quantize_layer(layer, quantizer(Grid(4, symmetric=True), 0.1)))
    # Codes from -8 to 7: 0.76, 2.0 and -0.86 are more than half a step outside.
    assert (found.low, found.high, found.bits) == (-8, 7, 4)
    assert found.clipped == pytest.approx(3 / 10)
    assert sum(found.counts) == 10
    weight = layer.weight.detach()
    rounded = (weight / 0.1).round().clamp(-8, 7) * 0.1
    ratio = weight.square().sum() / (weight - rounded).square().sum()
    assert found.sqnr_db == pytest.approx(10 * math.log10(float(ratio)), abs=1e-3)


def test_a_bin_holds_the_weights_that_lie_in_it() -> None:
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[0.02, 0.021, 0.31, -0.5]])
    found = weight_histogram(quantize_layer(layer, quantizer(Grid(4, symmetric=True), 0.1)))
    for value in (0.02, 0.31, -0.5):
        place = int((value / 0.1 - found.start) // found.width)
        assert found.counts[place] == (2 if value == 0.02 else 1)


def test_weights_before_are_counted_where_they_are_told() -> None:
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[0.1, 0.2]])
    quantized = quantize_layer(layer, quantizer(Grid(4, symmetric=True), 0.1))
    assert weight_histogram(quantized).sqnr_db is None
    before = weight_histogram(quantized, torch.tensor([[0.14, 0.9]]))
    assert before.clipped == 0.5
    assert before.sqnr_db is not None
    assert weight_histogram(quantized, torch.zeros(7, 7)).clipped == 0


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen = ActivationQuantizer(Grid(4))
        self.unset = ActivationQuantizer(Grid(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.seen(x) * 2


class Leaves(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def test_activations_are_counted_over_all_batches() -> None:
    net = Net()
    net.seen.set_range(torch.tensor(-1.0), torch.tensor(2.0))
    student = fx.GraphModule(net, Leaves().trace(net))
    batches = [torch.tensor([[-1.0, 0.0, 0.5]]), torch.tensor([[2.0, 2.05, 9.0]])]
    found = activation_histograms(student, batches)
    assert list(found) == ["seen"], "a quantizer without a range counts nothing"
    assert found["seen"].low == pytest.approx(-1)
    assert found["seen"].high == pytest.approx(2)
    assert found["seen"].step == pytest.approx(0.2)
    assert sum(found["seen"].counts) == 6
    assert found["seen"].clipped == pytest.approx(1 / 6)  # 2.05 is within half a step


def test_empty_bins_beyond_the_grid_are_left_out() -> None:
    net = Net()
    net.seen.set_range(torch.tensor(0.0), torch.tensor(1.0))
    student = fx.GraphModule(net, Leaves().trace(net))
    found = activation_histograms(student, [torch.rand(1, 50)])["seen"]
    assert found.start == pytest.approx(found.low - found.step / 2, abs=1e-6)
    assert found.start + len(found.counts) * found.width == pytest.approx(
        found.high + found.step / 2, abs=1e-6
    )
