"""Files for onnxruntime compute to the last bit what the integer model computes."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, fx, nn

from datafree.calibrators.base import calibrate
from datafree.calibrators.minmax import MinMax
from datafree.config import InputSpec, Scheme
from datafree.export.base import predict
from datafree.export.onnx import Onnx
from datafree.graph import integer
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.graph.integer import float_operators, integer_model
from datafree.graph.settle import settle
from datafree.runtimes.onnxruntime import OnnxRuntime
from drawn import DRAWN_SPEC, Drawn, drawn_images
from networks import randomized

pytestmark = pytest.mark.integration

X86 = platform.machine() in ("x86_64", "AMD64")
WIDTHS = ("W8A8", "W4A8", "W4A4", "W2A8")


def student(seed: int, bits: str, target: str = "onnxruntime") -> fx.GraphModule:
    folded = fold_batch_norms(capture(Drawn(seed), DRAWN_SPEC))
    made = insert_quantizers(folded, Scheme(target=target, bits=bits), DRAWN_SPEC)
    calibrate(made, [drawn_images(32, 100)], MinMax())
    return settle(made)


def difference(made: fx.GraphModule, path: Path, images: Tensor) -> float:
    """Largest difference of logits between the file and the integer model, over their spread."""
    Onnx().export(made, DRAWN_SPEC, path, check=images)
    expected = predict(integer_model(made), images)
    found = predict(Onnx().run(path), images)
    return float((expected - found).abs().max() / (expected.max() - expected.min()))


@pytest.mark.skipif(not X86, reason="other processors round additions in fixed point")
@pytest.mark.parametrize("seed", range(8))
def test_drawn_networks_are_equal(tmp_path: Path, seed: int) -> None:
    bits = WIDTHS[seed % len(WIDTHS)]
    made = student(seed, bits)
    found = difference(made, tmp_path / "student.onnx", drawn_images(64, 7))
    # What is computed in float between two quantizers may round to the other side of a tie.
    assert found < (0.05 if float_operators(made) else 1e-6)


def test_large_images_pass_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums are whole numbers, so that nothing changes."""
    made, images = student(1, "W8A8"), drawn_images(7, 3)
    whole = integer_model(made)(images)
    passed: list[int] = []
    monkeypatch.setattr(integer, "_LARGE", images[0, 0].numel() - 1)
    original = integer._Integers.run  # pyright: ignore[reportPrivateUsage]

    def watched(self: Any, batch: Tensor) -> Any:
        passed.append(len(batch))
        return original(self, batch)

    monkeypatch.setattr(integer._Integers, "run", watched)  # pyright: ignore[reportPrivateUsage]
    assert torch.equal(integer_model(made)(images), whole)
    assert passed == [2, 2, 2, 1]


def test_few_bits_are_stored_in_four(tmp_path: Path) -> None:
    path = tmp_path / "student.onnx"
    Onnx().export(student(3, "W2A4"), DRAWN_SPEC, path)
    model = onnx.load(path)
    weights = [t for t in model.graph.initializer if t.name.endswith("weight_quantized")]
    assert weights and all(t.data_type == onnx.TensorProto.INT4 for t in weights)
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    assert len(casts) == len(weights)


def test_biases_are_integers_on_the_grid_of_the_sums(tmp_path: Path) -> None:
    made = student(3, "W8A8")
    path = tmp_path / "student.onnx"
    Onnx().export(made, DRAWN_SPEC, path)
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    codes = {name.removesuffix("_quantized") for name in stored if name.endswith("bias_quantized")}
    assert codes
    for name in codes:
        bias = dict(made.named_parameters())[name]
        product = stored[f"{name}_quantized"].astype("float64") * stored[f"{name}_scale"]
        torch.testing.assert_close(
            torch.from_numpy(product).float(), bias.detach(), rtol=1e-6, atol=0
        )


class TwoHalves(nn.Module):
    """One body looks at both halves of an image, which differ in their ranges."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.deep, self.out = nn.Conv2d(8, 8, 3), nn.Linear(8, 6)
        self.last = nn.Linear(6, 4)

    def body(self, x: Tensor) -> Tensor:
        x = torch.relu(self.deep(torch.relu(self.bn(self.conv(x)))))
        return self.out(x.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.last((self.body(x[..., :8]) - self.body(3 * x[..., 8:])).abs())


@pytest.mark.skipif(not X86, reason="other processors round additions in fixed point")
@pytest.mark.parametrize("bits", WIDTHS)
def test_a_body_called_twice_has_one_weight_and_integer_kernels(tmp_path: Path, bits: str) -> None:
    torch.manual_seed(0)
    spec = InputSpec(shape=(3, 16, 16), mean=(0.5,) * 3, std=(0.25,) * 3, classes=4)
    x = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    folded = fold_batch_norms(capture(randomized(TwoHalves(), x), spec))
    made = insert_quantizers(folded, Scheme(target="onnxruntime", bits=bits), spec)
    calibrate(made, [x], MinMax())
    settle(made)
    path = tmp_path / "student.onnx"
    Onnx().export(made, spec, path, check=x)
    expected, found = predict(integer_model(made), x), predict(Onnx().run(path), x)
    # Sub and Abs are float steps between quantizers.
    assert float((expected - found).abs().max()) < 0.05 * float(expected.max() - expected.min())
    model = onnx.load(path)
    names = [t.name for t in model.graph.initializer if t.name.endswith("weight_quantized")]
    assert sorted(names) == [f"{p}.weight_quantized" for p in ("conv", "deep", "last", "out")]
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(layers) == 7
    ran = OnnxRuntime().kernels(path)
    assert (ran.integer, ran.total, ran.floats) == (7, 7, ())


class Frequencies(nn.Module):
    """A transform on both axes with the same weights, and a convolution on one part of many."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = nn.Linear(4, 4, bias=False)
        self.each = nn.ModuleList([nn.Conv2d(16, 5, 1) for _ in range(3)])
        self.last = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(2, (4, 4)).unflatten(4, (4, 4)).permute(0, 1, 2, 4, 3, 5)
        x = self.transform(self.transform(x).transpose(-1, -2)).flatten(4)
        parts = x.permute(0, 1, 4, 2, 3)
        found = [each(parts[:, i]) for i, each in enumerate(self.each)]
        return self.last(torch.relu(found[0] + found[1] + found[2]).mean((2, 3)))


@pytest.mark.skipif(not X86, reason="other processors round additions in fixed point")
def test_parts_that_are_picked_and_weights_read_twice_are_integers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = InputSpec(shape=(3, 16, 16), mean=(0.5,) * 3, std=(0.25,) * 3, classes=4)
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    folded = fold_batch_norms(capture(Frequencies().eval(), spec))
    made = insert_quantizers(folded, Scheme(target="onnxruntime", bits="W8A8"), spec)
    calibrate(made, [x], MinMax())
    path = tmp_path / "student.onnx"
    Onnx().export(settle(made), spec, path, check=x)
    expected, found = predict(integer_model(made), x), predict(Onnx().run(path), x)
    assert float((expected - found).abs().max()) < 0.02 * float(expected.max() - expected.min())
    ran = OnnxRuntime().kernels(path)
    assert (ran.integer, ran.total, ran.floats) == (6, 6, ())
