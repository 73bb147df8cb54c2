from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, fx, nn

from datafree.calibrators.base import calibrate
from datafree.calibrators.minmax import MinMax
from datafree.config import Scheme
from datafree.errors import ParityError
from datafree.export._notes import float_notes
from datafree.export._parity import Parity
from datafree.export.base import Exporter
from datafree.export.onnx import Onnx
from datafree.export.pt2 import Pt2
from datafree.graph.capture import capture
from datafree.graph.floats import Computation
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.runs.exporting import summarize
from networks import SPEC, images, randomized


def parity(mismatches: int, noise: float) -> Parity:
    return Parity(images=32, mismatches=mismatches, difference=0.1, spread=10.0, noise=noise)


def test_a_file_may_differ_by_four_times_what_the_student_differs_from_itself() -> None:
    path, still = Path("student.onnx"), parity(0, 0.0)
    Onnx().judge(parity(2, 0.1), still, path)
    Onnx().judge(parity(4, 0.45), parity(1, 0.1), path)
    for found, own in (
        (parity(3, 0.0), still),
        (parity(0, 0.11), still),
        (parity(5, 0.0), parity(1, 0.1)),
        (parity(0, 0.51), parity(1, 0.1)),
        (parity(0, float("nan")), still),
    ):
        with pytest.raises(ParityError, match="not kept"):
            Onnx().judge(found, own, path)


def test_whole_numbers_may_differ_in_nothing_but_a_mean_of_them_in_its_last_digit() -> None:
    path = Path("student.onnx")

    def by(difference: float) -> Parity:
        return Parity(images=32, mismatches=0, difference=difference, spread=10.0, noise=0.0)

    Onnx().judge(by(0.0), None, path)
    Onnx().judge(by(9e-6), None, path, rounded=True)
    for difference, rounded in ((1e-9, False), (2e-5, True)):
        with pytest.raises(ParityError, match="no difference at all"):
            Onnx(noise=10).judge(by(difference), None, path, rounded=rounded)


class Upsampling(nn.Module):
    """A transposed convolution, which has no quantizer, and a norm behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.norm, self.linear = nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.up(torch.relu(self.conv(x)))))
        return self.linear(x.mean((2, 3)))


QUANTIZED_WEIGHTS, FLOAT_WEIGHTS = 8 * 27 + 20, 8 * 4 * 4 + 4


def upsampling() -> fx.GraphModule:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        graph = capture(randomized(Upsampling(), images(8)), SPEC)
    student = insert_quantizers(fold_batch_norms(graph), Scheme(weight_granularity="channel"))
    calibrate(student, [images(8)], MinMax())
    return student


def test_weights_in_float_count_on_both_sides(tmp_path: Path) -> None:
    report = Onnx().export(upsampling(), SPEC, tmp_path / "s.onnx")
    assert report.unquantized_bytes == 4 * FLOAT_WEIGHTS
    assert report.float_weight_bytes == 4 * (QUANTIZED_WEIGHTS + FLOAT_WEIGHTS)
    rows = 8 + 5  # a scale of four bytes and a zero point of one
    assert report.weight_bytes == QUANTIZED_WEIGHTS + 5 * rows + 4 * FLOAT_WEIGHTS
    stored = {t.name: len(t.raw_data) for t in onnx.load(report.path).graph.initializer}
    assert stored["up.weight"] == 4 * 8 * 4 * 4
    share = 100 * report.weight_bytes / report.float_weight_bytes
    assert f"weights {share:.1f} % of float" in summarize(report)["line"]
    assert summarize(report)["unquantized_bytes"] == report.unquantized_bytes


@pytest.mark.parametrize("exporter", [Onnx(), Pt2()], ids=["onnx", "pt2"])
def test_a_note_names_the_layers_in_float(exporter: Exporter, tmp_path: Path) -> None:
    report = exporter.export(upsampling(), SPEC, tmp_path / f"s{exporter.suffix}")
    (note,) = [note for note in report.notes if "stay in float" in note]
    weights = 100 * FLOAT_WEIGHTS / (QUANTIZED_WEIGHTS + FLOAT_WEIGHTS)
    macs = 36 * 8 * 16 + 4 * 144
    share = 100 * macs / (macs + 36 * 8 * 27 + 20)
    assert note == (
        "These layers stay in float: up (conv_transpose2d), norm (BatchNorm2d); they have"
        f" {weights:.2g} % of the weights and {share:.2g} % of the multiplications."
    )


def test_a_float_network_has_weights_in_float_and_no_note(tmp_path: Path) -> None:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        graph = capture(randomized(Upsampling(), images(8)), SPEC)
    report = Onnx().export(graph, SPEC, tmp_path / "s.onnx")
    assert report.weight_bytes == report.float_weight_bytes == report.unquantized_bytes > 0
    assert report.notes == ()
    assert "weights in float" in summarize(report)["line"]


def test_little_in_float_is_not_worth_a_note() -> None:
    large = Computation("conv", "Conv2d", 10_000, 10_000, quantized=True)
    assert float_notes([large]) == ()
    assert float_notes([large, Computation("norm", "BatchNorm2d", 90, 90)]) == ()
    (note,) = float_notes([large, Computation("norm", "BatchNorm2d", 1_111, 0)])
    assert note.endswith("norm (BatchNorm2d); they have 0 % of the weights and 10 % of the"
                         " multiplications.")  # fmt: skip
    (many,) = float_notes([large, *(Computation(f"n{i}", "mul", i, 400) for i in range(5))])
    assert "n4 (mul), n3 (mul), n2 (mul) and 2 more;" in many
