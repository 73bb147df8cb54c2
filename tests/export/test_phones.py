"""Programs for phones: integers all through, by their own runtimes, or a plain refusal."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx, nn

from datafree.calibrators.base import calibrate
from datafree.calibrators.minmax import MinMax
from datafree.config import InputSpec, Scheme
from datafree.errors import ExportError
from datafree.export import _optional
from datafree.export._decomposed import decomposed, one_reader_each
from datafree.export._differs import Differs
from datafree.export._packed import (
    _rounded_in,  # pyright: ignore[reportPrivateUsage]
    biases,
    orders,
)
from datafree.export.base import predict
from datafree.export.pt2e import Pt2e
from datafree.export.pte import Pte
from datafree.export.tflite import Tflite
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.graph.settle import input_quantizers, settle
from datafree.quant.modules import QUANTIZED, ActivationQuantizer
from drawn import DRAWN_SPEC, Drawn, drawn_images
from residual import RESIDUAL_SPEC, Branches, ResNet, residual_images

pytestmark = pytest.mark.integration
OPS = torch.ops.quantized_decomposed


def student(net: nn.Module, spec: InputSpec, images: Any, target: str) -> fx.GraphModule:
    made = insert_quantizers(fold_batch_norms(capture(net, spec)), Scheme(target=target), spec)
    calibrate(made, [images], MinMax())
    return settle(made)


def branches(target: str) -> fx.GraphModule:
    return student(Branches(), RESIDUAL_SPEC, residual_images(32, 0), target)


def ratio(made: fx.GraphModule) -> float:
    """Largest step of the sums in the convolution before a ReLU without positive values."""
    behind = made.get_submodule("parts_2_relu_quantizer")
    layer = made.get_submodule("parts.2.reduce")
    before = input_quantizers(made)["parts.2.reduce"]
    assert isinstance(behind, ActivationQuantizer) and isinstance(layer, QUANTIZED) and before
    return float(before.scale * layer.weight_quantizer.scale.max() / behind.scale)


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("target", ["executorch", "litert", "paper", "onnxruntime"])
def test_decomposed_students_compute_the_same(target: str, stored: bool) -> None:
    made = branches(target)
    images = residual_images(8, 1)
    with torch.no_grad():
        torch.testing.assert_close(
            decomposed(made, stored=stored)(images), made(images), rtol=1e-5, atol=1e-5
        )


def test_every_layer_stands_between_pairs_of_int8() -> None:
    program = torch.export.export(
        decomposed(branches("executorch")), (residual_images(1, 0),), strict=False
    )
    layers = [
        n for n in program.graph.nodes if str(n.target).startswith(("aten.conv2d", "aten.linear"))
    ]
    assert len(layers) == 9
    for node in one_reader_each(program).graph.nodes:
        if node in layers:
            source, weight = node.args[:2]
            assert source.target is OPS.dequantize_per_tensor.default
            assert source.args[5] is torch.int8 and len(source.users) == 1
            assert weight.target is OPS.dequantize_per_channel.default
    for node in program.graph.nodes:
        if node.target is OPS.dequantize_per_tensor.default:
            assert len(node.users) == 1


def test_pt2e_stores_int8_weights_and_runs_any_batch(tmp_path: Path) -> None:
    made, path = branches("executorch"), tmp_path / "student.pt2e"
    report = Pt2e().export(made, RESIDUAL_SPEC, path, check=residual_images(16, 1))
    assert report.parity.mismatches == 0
    state = torch.export.load(io.BytesIO(path.read_bytes())).state_dict
    codes = [tensor for name, tensor in state.items() if name.endswith("codes")]
    assert len(codes) == 9 and all(tensor.dtype == torch.int8 for tensor in codes)
    assert sum(t.numel() for t in codes) < report.weight_bytes < report.float_weight_bytes / 2


def test_results_have_room_for_surer_answers() -> None:
    made = branches("executorch")
    (result,) = made.graph.output_node().all_input_nodes
    last = made.get_submodule(str(result.target))
    assert isinstance(last, ActivationQuantizer) and last.widened == 4
    floats = student(Branches(), RESIDUAL_SPEC, residual_images(32, 0), "onnxruntime")
    logits = predict(floats, residual_images(32, 0))
    reach = float(last.scale) * 255 / float(logits.max() - logits.min())
    assert 3.5 < reach < 4.5


def test_litert_has_fixed_grids_behind_sigmoids() -> None:
    made = branches("litert")
    found = [
        quantizer for n in made.graph.nodes
        if n.op == "call_module" and n.args and "sigmoid" in n.args[0].name
        and isinstance(quantizer := made.get_submodule(str(n.target)), ActivationQuantizer)
    ]  # fmt: skip
    assert [(float(q.scale), float(q.zero_point)) for q in found] == [(1 / 256, 0)]


def test_settled_scales_keep_the_ratios_of_xnnpack() -> None:
    made = student(Drawn(4), DRAWN_SPEC, drawn_images(32, 100), "executorch")
    free = student(Drawn(4), DRAWN_SPEC, drawn_images(32, 100), "onnxruntime")
    found = ratio(made)
    assert ratio(free) > 256  # of values that are all zero
    assert 200 < found < 256


@pytest.mark.parametrize("exporter", [Pte(), Tflite()], ids=["pte", "tflite"])
def test_without_the_runtime_the_extra_is_named(
    exporter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_optional, "find_spec", dict[str, None]().get)
    told = (
        f"need {exporter.package}, which is not installed: pip install 'datafree.{exporter.extra}.'"
    )
    with pytest.raises(ExportError, match=told):
        exporter.export(branches(exporter.targets[0]), RESIDUAL_SPEC, tmp_path / "student")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("codes", "held"),
    [([7, -32707], True), ([7, -32706], True), ([7, -32705], False), ([8, -32706], False)],
)
def test_ties_of_a_bias_may_fall_to_either_side(codes: list[int], held: bool) -> None:
    """The second is 32706.5012 steps, which float32 cannot tell from a tie; the first is 7.1."""
    step = torch.tensor([2.0**-10, 2.0**-13])
    bias = torch.tensor([7.1, -32706.5012]) * step
    content = np.array([5, *codes, 9], np.int32).tobytes() + b"abc"
    assert _rounded_in(content, bias, step) is held


@pytest.mark.skipif(not importlib.util.find_spec("executorch"), reason="needs executorch")
@pytest.mark.parametrize("net", [ResNet, Branches], ids=lambda c: c.__name__)
def test_executorch_computes_all_in_one_delegate(net: Any, tmp_path: Path) -> None:
    made = student(net(), RESIDUAL_SPEC, residual_images(32, 0), "executorch")
    path = tmp_path / "student.pte"
    report = Pte(batch=3).export(made, RESIDUAL_SPEC, path, check=residual_images(16, 1))
    assert report.parity.mismatches <= 1
    assert report.notes == ()  # nothing runs outside XNNPACK
    assert Pte().run(path)(residual_images(4, 2)).shape == (4, 7)


@pytest.mark.skipif(not importlib.util.find_spec("executorch"), reason="needs executorch")
def test_executorch_runs_students_with_dead_channels(tmp_path: Path) -> None:
    made = student(Drawn(4), DRAWN_SPEC, drawn_images(32, 100), "executorch")
    report = Pte().export(made, DRAWN_SPEC, tmp_path / "s.pte", check=drawn_images(16, 7))
    assert report.parity.mismatches == 0


@pytest.mark.skipif(not importlib.util.find_spec("litert_torch"), reason="needs litert-torch")
@pytest.mark.parametrize("net", [ResNet, Branches], ids=lambda c: c.__name__)
def test_litert_computes_in_int8_only(net: Any, tmp_path: Path) -> None:
    made = student(net(), RESIDUAL_SPEC, residual_images(32, 0), "litert")
    path = tmp_path / "student.tflite"
    report = Tflite().export(made, RESIDUAL_SPEC, path, check=residual_images(16, 1))
    assert report.parity.mismatches == 0
    interpreter = Tflite()._interpreter(path)
    tensors = {tensor["index"]: tensor for tensor in interpreter.get_tensor_details()}
    assert not [t["name"] for t in tensors.values() if t["dtype"] == np.float32]
    for operator in interpreter._get_ops_details():
        if operator["op_name"] in ("CONV_2D", "FULLY_CONNECTED"):
            weight = tensors[operator["inputs"][1]]
            assert weight["dtype"] == np.int8
            assert interpreter.get_tensor(weight["index"]).min() >= -127


def planted(path: Path, wanted: bytes) -> None:
    """Turn over the lowest bit of one byte in the middle of `wanted`, wherever the file has it."""
    content = path.read_bytes()
    at = content.find(wanted) + len(wanted) // 2 // 4 * 4
    assert wanted in content
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])


@pytest.mark.parametrize("suffix", [".pte", ".tflite"])
@pytest.mark.parametrize("what", ["codes", "scales", "bias"])
def test_one_bit_of_a_layer_is_refused(suffix: str, what: str, tmp_path: Path) -> None:
    exporter = Pte() if suffix == ".pte" else Tflite()
    if not importlib.util.find_spec(exporter.package):
        pytest.skip(f"needs {exporter.package}")
    made = student(ResNet(), RESIDUAL_SPEC, residual_images(32, 0), exporter.targets[0])
    path = tmp_path / f"student{suffix}"
    exporter.write(made, RESIDUAL_SPEC, path, {})
    exporter.verify(made, path)
    layer = next(m for m in made.modules() if isinstance(m, QUANTIZED) and m.bias is not None)
    scales = layer.weight_quantizer.scale.flatten().numpy()
    if what == "codes":
        content = path.read_bytes()
        orders_ = [order.to(torch.int8).numpy().tobytes() for order in orders(layer)]
        planted(path, next(one for one in orders_ if one in content))
    elif what == "scales":
        planted(path, scales.tobytes())
    else:
        content = path.read_bytes()
        forms = biases(layer, [q for q in input_quantizers(made).values() if q is not None][:1])
        planted(path, next(one for one in forms if one in content))
    with pytest.raises(Differs, match=r"the (codes|scales|bias)"):
        exporter.verify(made, path)
