from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, fx, nn

from datafree.calibrators.base import calibrate
from datafree.calibrators.minmax import MinMax
from datafree.config import Scheme
from datafree.config.outputs import Output
from datafree.errors import ParityError
from datafree.export._parity import alike, compare_outputs, sensitivity
from datafree.export.base import Written
from datafree.export.onnx import Onnx
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.graph.settle import settle
from datafree.quant.grid import Grid
from datafree.quant.modules import ActivationQuantizer
from networks import SPEC, images, randomized

MAP = (Output(name="out", shape=(2, 2, 2), kind="dense_classes"),)


def test_what_noise_explains_is_no_other_prediction() -> None:
    expected = torch.tensor([[1.0, 0.99], [3.0, 0.0], [0.0, 2.0]])
    noisy = expected + torch.tensor([[-0.02, 0.02], [0.02, -0.02], [0.02, -0.02]])
    found = compare_outputs(expected, noisy)
    assert found.mismatches == 0 and found.difference == pytest.approx(0.02)
    other = expected.clone()
    other[1] = torch.tensor([0.0, 3.0])  # one image of many is another: more than its noise
    many = torch.cat([expected, expected.repeat(50, 1)])
    assert compare_outputs(many, torch.cat([other, expected.repeat(50, 1)])).mismatches == 1


def test_positions_are_judged_one_by_one() -> None:
    expected = torch.zeros(20, 8)
    expected[:, :4] = 5.0  # class 0 at all four positions
    moved = expected.clone()
    moved[0, 0], moved[0, 4] = 0.0, 5.0
    found = compare_outputs(expected, moved, MAP)
    assert (found.rows, found.mismatches, found.images) == (80, 1, 20)
    assert "98.8 % identical predictions" in str(found)


def test_outputs_without_classes_have_noise_alone() -> None:
    heads = (Output(name="box", shape=(3,), kind="values"),)
    expected = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    found = compare_outputs(expected, expected + 0.1, heads)
    assert found.mismatches == found.rows == 0
    centred = expected - expected.mean()
    assert found.noise == pytest.approx(0.1 / float(centred.square().mean().sqrt()), rel=1e-5)
    assert "predictions" not in str(found)


def test_a_constant_student_has_a_floor_and_a_word_of_warning() -> None:
    expected = torch.full((8, 3), 0.5)
    assert compare_outputs(expected, expected + 1e-7).noise < 0.01
    assert compare_outputs(expected, expected + 0.1).noise > 1
    (note,) = alike(expected)
    assert "the same for all images" in note
    assert alike(torch.eye(3)) == ()


def student_of(model: nn.Module, bits: str, target: str = "onnxruntime") -> fx.GraphModule:
    graph = capture(model.eval(), SPEC)
    folded = fold_batch_norms(graph)
    made = insert_quantizers(folded, Scheme(bits=bits, target=target), SPEC)  # pyright: ignore
    calibrate(made, [images(16)], MinMax())
    return settle(made)


def test_a_student_differs_from_itself_where_it_stands_on_ties() -> None:
    quantizer = ActivationQuantizer(Grid(bits=4, symmetric=False), fixed=(2.0, 0))
    quantizer.set_range(torch.tensor(0.0), torch.tensor(1.0))
    graph = fx.Graph()
    codes = graph.call_module("quantizer", (graph.placeholder("x"),))
    graph.output(graph.call_method("flatten", (codes, 1)))
    student = fx.GraphModule({"quantizer": quantizer}, graph)
    even = 2.0 * torch.arange(12.0).view(2, 3, 1, 2)
    assert sensitivity(student, even).noise == 0
    assert sensitivity(student, even + 1).noise > 0.1  # halfway between two codes


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.linear = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.relu(self.two(torch.relu(self.one(x)))).mean((2, 3)))


class OneCode(Onnx):
    """Writes one weight of one channel a code too high, and does not look at what it wrote."""

    def verify(self, student: fx.GraphModule, path: Path) -> None:
        """Leave the error to what the file computes."""

    def write(self, student: fx.GraphModule, spec: Any, path: Path, about: Any) -> Written:
        written = super().write(student, spec, path, about)
        model = onnx.load(path)
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor).copy()
            if values.dtype == np.int8 and values.ndim == 4:
                flat = values.reshape(-1)
                flat[int(np.argmin(np.abs(flat)))] += 1
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
                break
        else:
            raise AssertionError("no weight was found to change")
        onnx.save(model, path)
        return written


def test_a_planted_error_of_one_code_is_found(tmp_path: Path) -> None:
    made = student_of(randomized(Plain(), images(32)), "W8A8")
    path = tmp_path / "student.onnx"
    assert Onnx().export(made, SPEC, path, check=images(16)).parity.difference == 0
    with pytest.raises(ParityError, match="no difference at all"):
        OneCode().export(made, SPEC, tmp_path / "other.onnx", check=images(16))
    assert not (tmp_path / "other.onnx").exists()


class MeanOfCodes(nn.Module):
    """Ends in a mean, which onnxruntime takes of real numbers where no quantizer follows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.last(torch.relu(self.conv(x)))).mean((2, 3))


def test_a_network_that_ends_in_a_mean_is_accepted(tmp_path: Path) -> None:
    made = student_of(randomized(MeanOfCodes(), images(32)), "W8A8")
    report = Onnx().export(made, SPEC, tmp_path / "student.onnx", check=images(64))
    assert report.parity.relative < 1e-6
