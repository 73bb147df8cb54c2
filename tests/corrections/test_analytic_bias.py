from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, fx, nn

from datafree.config import ModelConfig, Scheme
from datafree.corrections.analytic_bias import correct_biases_analytically
from datafree.corrections.bias_correction import correct_biases
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers, quantizable_layers
from datafree.graph.statistics import Normal, layer_statistics
from datafree.models import load_teacher
from datafree.testing.watching import fingerprint
from datafree.zoo import load_digits_test
from networks import NETWORKS, SPEC, captured

WEIGHTS_ONLY = Scheme(bits="W3A32", weight_granularity="tensor")


class Two(nn.Module):
    """A convolution, a ReLU and a second convolution of any kind."""

    def __init__(self, second: nn.Conv2d) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3), second

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(x))).mean((2, 3))


def error(folded: fx.GraphModule, student: fx.GraphModule, path: str) -> Tensor:
    layer, exact = student.get_submodule(path), folded.get_parameter(f"{path}.weight")
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    with torch.no_grad():
        return layer.get_submodule("weight_quantizer")(layer.weight) - exact


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_by_hand(groups: int, *, bias: bool) -> None:
    """E[max(N(0, 4), 0)] = 2 / sqrt(2 pi); of a constant 3 it is 3, of a constant -1 it is 0."""
    folded = fold_batch_norms(capture(Two(nn.Conv2d(4, 8, 2, groups=groups, bias=bias)), SPEC))
    student = insert_quantizers(folded, WEIGHTS_ONLY)
    statistics = {
        "one": Normal(
            torch.tensor([0, 3, -1, 0], dtype=torch.float64),
            torch.tensor([2, 0, 0, 1], dtype=torch.float64),
        )
    }
    inputs = torch.tensor([2, 0, 0, 1]) / math.sqrt(2 * math.pi) + torch.tensor([0, 3.0, 0, 0])
    kernel = error(folded, student, "two").sum((2, 3))  # (8, 4 / groups)
    expected = torch.zeros(8)
    for row in range(8):
        start = row // (8 // groups) * (4 // groups)
        for column in range(4 // groups):
            expected[row] += kernel[row, column] * inputs[start + column]
    before = fingerprint(folded)
    found = correct_biases_analytically(folded, student, statistics, SPEC)
    assert fingerprint(folded) == before
    assert found.skipped == ("one",)
    assert list(found.shifts) == ["two"]
    torch.testing.assert_close(found.shifts["two"], expected)
    old = folded.get_parameter("two.bias") if bias else torch.zeros(8)
    torch.testing.assert_close(student.get_parameter("two.bias"), old - expected)
    assert float(expected.abs().max()) > 0.01


@pytest.mark.parametrize(
    ("name", "skipped"),
    [
        ("Tiny", {"conv1"}),
        ("Functional", {"", "lifted"}),
        ("Grouped", {"stem"}),
        ("NoNorm", {"conv", "linear"}),
    ],
)
def test_layers_behind_the_unknown_are_named(name: str, skipped: set[str]) -> None:
    graph = captured(name)
    folded = fold_batch_norms(graph)
    student = insert_quantizers(folded, WEIGHTS_ONLY)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    found = correct_biases_analytically(folded, student, layer_statistics(graph), SPEC)
    if name == "Functional":  # batch norm, ReLU, maximum: neither of its two layers
        assert len(found.skipped) == 2
    else:
        assert set(found.skipped) == skipped
    assert {*found.shifts, *found.skipped} == set(quantizable_layers(student))
    after = student.state_dict()
    changed = {
        n for n, value in after.items() if n not in before or not torch.equal(value, before[n])
    }
    assert changed == {f"{path}.bias" for path in found.shifts}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_float_weights_shift_nothing(name: str) -> None:
    graph = captured(name)
    folded = fold_batch_norms(graph)
    student = insert_quantizers(folded, WEIGHTS_ONLY)
    for path in quantizable_layers(student):
        layer = student.get_submodule(path)
        layer.get_submodule("weight_quantizer").enabled = False  # pyright: ignore
    found = correct_biases_analytically(folded, student, layer_statistics(graph), SPEC)
    assert all(float(shift.abs().max()) == 0 for shift in found.shifts.values())


def test_agrees_with_the_empirical_correction_on_digits() -> None:
    """The shifts real images show, without one of them; the skipped first layer's is small."""
    teacher = load_teacher(ModelConfig(source="digits_resnet8"))
    graph = capture(teacher.model, teacher.spec)
    folded = fold_batch_norms(graph)
    student, other = (insert_quantizers(folded, WEIGHTS_ONLY) for _ in range(2))
    found = correct_biases_analytically(folded, student, layer_statistics(graph), teacher.spec)
    assert found.skipped == ("stem.0",)
    digits = torch.from_numpy(load_digits_test()[0]).permute(0, 3, 1, 2) / 255
    images = (digits - teacher.spec.mean[0]) / teacher.spec.std[0]
    real = correct_biases(folded, other, images)
    for path, shift in found.shifts.items():
        together = torch.corrcoef(torch.stack((shift, real[path])))[0, 1]
        # 3 bits bend every ReLU's input, and half the positions of an 8x8 image touch its border.
        assert float(together) > 0.6, path
