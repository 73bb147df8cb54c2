"""Every number that a file stores is looked at: an error of one code, or one bit, is refused."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, fx, nn

from datafree.calibrators.base import calibrate
from datafree.calibrators.minmax import MinMax
from datafree.config import InputSpec, Scheme
from datafree.errors import ParityError
from datafree.export._differs import Differs
from datafree.export._readback import check_onnx, check_state
from datafree.export.base import Exporter, Written, plain_copy
from datafree.export.encodings import Encodings
from datafree.export.onnx import Onnx
from datafree.export.pt2 import Pt2
from datafree.export.pt2e import Pt2e
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.graph.settle import settle
from networks import randomized

pytestmark = pytest.mark.integration

SPEC = InputSpec(shape=(3, 12, 12), mean=(0.5,) * 3, std=(0.5,) * 3, classes=5)


class Mixed(nn.Module):
    """A convolution, a depthwise one, a residual sum, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.wise, self.point = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)
        self.hidden, self.head = nn.Linear(8, 7), nn.Linear(7, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv(x)))
        x = torch.relu(self.point(torch.relu(self.wise(x))) + x)
        return self.head(torch.relu(self.hidden(x.mean((2, 3)))))


def drawn_images(count: int) -> Tensor:
    return torch.randn(count, *SPEC.shape, generator=torch.Generator().manual_seed(3))


@cache
def student(target: str, bits: str) -> fx.GraphModule:
    torch.manual_seed(0)
    graph = capture(randomized(Mixed(), drawn_images(8)), SPEC)
    made = insert_quantizers(fold_batch_norms(graph), Scheme(target=target, bits=bits), SPEC)
    calibrate(made, [drawn_images(32)], MinMax())
    return plain_copy(settle(made))


def written(exporter: Exporter, target: str, bits: str, folder: Path) -> Path:
    path = folder / f"student{exporter.suffix}"
    exporter.write(student(target, bits), SPEC, path, {})
    return path


def flipped(content: bytes, at: int) -> bytes:
    """`content` with the lowest bit of a byte turned over."""
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    ("target", "bits"),
    [
        ("onnxruntime", "W8A8"), ("onnxruntime", "W4A8"), ("onnxruntime", "W2A4"),
        ("onnxruntime", "W7A8"), ("onnxruntime", "W4A32"), ("openvino", "W8A8"),
        ("tensorrt", "W8A8"), ("qnn", "W8A8"), ("vitis", "W8A8"),
        ("paper", "W4A4"), ("paper", "W3A8"),
    ],
)  # fmt: skip
def test_one_bit_of_any_tensor_is_refused(target: str, bits: str, tmp_path: Path) -> None:
    made = student(target, bits)
    model = onnx.load(written(Onnx(), target, bits, tmp_path))
    check_onnx(model, made)
    kinds = set[str]()
    for index, tensor in enumerate(model.graph.initializer):
        if tensor.data_type == onnx.TensorProto.INT64:
            continue  # shapes and axes
        size = len(tensor.raw_data)
        other = onnx.ModelProto()
        other.CopyFrom(model)
        step = 4 if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.INT32) else 1
        place = (37 * (index + 1)) % (size // step) * step
        other.graph.initializer[index].raw_data = flipped(tensor.raw_data, place)
        with pytest.raises(Differs) as found:
            check_onnx(other, made)
        owner = tensor.name.removesuffix("_added").rpartition(".")[0]
        assert owner in found.value.what, tensor.name
        kinds.add(tensor.name.rpartition(".")[2].removesuffix("_added"))
    weights = {"weight_quantized", "weight_scale", "weight_zero_point"}
    assert kinds >= weights | ({"scale", "zero_point"} if "A32" not in bits else set())


def test_a_layer_that_the_file_lacks_is_named(tmp_path: Path) -> None:
    model = onnx.load(written(Onnx(), "onnxruntime", "W8A8", tmp_path))
    for node in model.graph.node:
        if node.op_type == "Gemm":
            node.input[1] = "nothing"
    with pytest.raises(Differs, match=r"hidden|head"):
        check_onnx(model, student("onnxruntime", "W8A8"))


class OneCode(Onnx):
    """Writes one weight of a channel that no image reaches a code too high."""

    def write(self, student: fx.GraphModule, spec: InputSpec, path: Path, about: object) -> Written:
        told = super().write(student, spec, path, {})
        model = onnx.load(path)
        for tensor in model.graph.initializer:
            if tensor.name == "wise.weight_quantized":
                tensor.raw_data = flipped(tensor.raw_data, len(tensor.raw_data) - 1)
        onnx.save(model, path)
        return told


@pytest.mark.parametrize(("target", "bits"), [("openvino", "W8A8"), ("paper", "W4A4")])
def test_an_export_refuses_it_and_keeps_no_file(target: str, bits: str, tmp_path: Path) -> None:
    path = tmp_path / "student.onnx"
    with pytest.raises(ParityError, match=r"the codes of the weight of wise differ \(at \["):
        OneCode().export(student(target, bits), SPEC, path, check=drawn_images(4))
    assert list(tmp_path.iterdir()) == []


def test_an_archive_of_torch_is_compared_tensor_by_tensor(tmp_path: Path) -> None:
    made = student("paper", "W4A4")
    path = written(Pt2(), "paper", "W4A4", tmp_path)
    Pt2().verify(made, path)
    program = torch.export.load(path)
    with torch.no_grad():
        program.state_dict["point.weight"].view(-1)[5] += 1e-6
    torch.export.save(program, path)
    with pytest.raises(Differs, match=r"point\.weight"):
        Pt2().verify(made, path)


@pytest.mark.parametrize("name", ["codes", "scale", "zero_point", "bias"])
def test_codes_for_torch_backends_are_compared(name: str, tmp_path: Path) -> None:
    made = student("executorch", "W8A8")
    path = written(Pt2e(), "executorch", "W8A8", tmp_path)
    Pt2e().verify(made, path)
    program = torch.export.load(io.BytesIO(path.read_bytes()))
    wanted = "wise.bias" if name == "bias" else f"wise.weight_quantizer.{name}"
    with torch.no_grad():
        values = program.state_dict[wanted].view(-1)
        values[1] = values[1] + 1 if not values.is_floating_point() else values[1] * 1.0001
    with path.open("wb") as file:
        torch.export.save(program, file)
    with pytest.raises(Differs, match=rf"wise.*{name}|wise.*codes"):
        Pt2e().verify(made, path)


@pytest.mark.parametrize("bits", ["W8A8", "W4A4"])
def test_encodings_are_compared(bits: str, tmp_path: Path) -> None:
    made = student("qnn" if bits == "W8A8" else "paper", bits)
    path = written(Encodings(), "qnn" if bits == "W8A8" else "paper", bits, tmp_path)
    Encodings().verify(made, path)
    text = path.read_text(encoding="utf-8")
    for kind, key in (
        ("param_encodings", "scale"), ("param_encodings", "offset"),
        ("activation_encodings", "scale"), ("activation_encodings", "offset"),
    ):  # fmt: skip
        told = json.loads(text)
        entry = list(told[kind].values())[1][0]
        entry[key] = entry[key] * 1.001 if key == "scale" else entry[key] + 1
        path.write_text(json.dumps(told), encoding="utf-8")
        with pytest.raises(Differs):
            Encodings().verify(made, path)
    path.write_text(text, encoding="utf-8")
    network = path.with_suffix(".onnx")
    model = onnx.load(network)
    (weight,) = (t for t in model.graph.initializer if t.name == "conv.weight")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0, 0, 0] += 3 * made.get_submodule("conv").weight_quantizer.scale.flatten()[0].item()  # pyright: ignore
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, network)
    with pytest.raises(Differs, match=r"conv\.weight"):
        Encodings().verify(made, path)


def test_a_tensor_of_two_names_may_be_stored_under_one() -> None:
    tensor = torch.arange(3.0)
    check_state({"a": tensor, "b": tensor}, {"a": tensor.clone()})
    with pytest.raises(Differs, match="the numbers of b"):
        check_state({"a": tensor, "b": tensor.clone()}, {"a": tensor})
