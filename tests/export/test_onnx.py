"""ONNX files: what is in them, and that runtimes compute from them what the student computes."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, fx, nn

from datafree.calibrators.base import Calibrator, calibrate
from datafree.config import InputSpec, Scheme
from datafree.errors import ExportError, OutputExistsError, ParityError
from datafree.export._parity import compare_outputs, predict
from datafree.export.base import About, Exporter, ExportReport, Written
from datafree.export.onnx import Onnx
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.quant.modules import ActivationQuantizer
from datafree.registry import available, load

pytestmark = pytest.mark.integration

SPEC = InputSpec(shape=(3, 9, 9), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1), classes=5)


class Net(nn.Module):
    """ReLU and ReLU6, depthwise, an add, odd numbers of weights, a norm that cannot be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 7, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(7)
        self.depthwise = nn.Conv2d(7, 7, 3, padding=1, groups=7)
        self.norm2 = nn.BatchNorm2d(7)
        self.point = nn.Conv2d(7, 7, 1)
        self.norm3 = nn.BatchNorm2d(7)
        self.last = nn.Conv2d(7, 9, 3, padding=1)
        self.head = nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.stem(x)))
        y = nn.functional.relu6(self.norm2(self.depthwise(x)))
        y = self.norm3(torch.relu(self.point(y))) + x
        return self.head(torch.relu(self.last(y)).mean((2, 3)))


def trained(net: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            nn.init.normal_(module.bias, generator=generator)
        elif isinstance(module, nn.Conv2d | nn.Conv1d | nn.Linear):
            nn.init.normal_(module.weight, std=0.4, generator=generator)
    return net.eval()


def images(count: int = 32, spec: InputSpec = SPEC, seed: int = 5) -> Tensor:
    return torch.randn(count, *spec.shape, generator=torch.Generator().manual_seed(seed))


def ready(net: nn.Module, spec: InputSpec = SPEC, **scheme: Any) -> fx.GraphModule:
    student = insert_quantizers(fold_batch_norms(capture(net, spec)), Scheme(**scheme))
    minmax = load("datafree.calibrators", "minmax", Calibrator)()
    calibrate(student, [images(16, spec, seed=1)], minmax)
    return student


def initializers(path: Path) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}


def nodes(path: Path, kind: str) -> list[onnx.NodeProto]:
    return [node for node in onnx.load(path).graph.node if node.op_type == kind]


def values(tensor: TensorProto) -> np.ndarray[Any, Any]:
    return numpy_helper.to_array(tensor).astype(np.float64)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return trained(Net())


@pytest.fixture(scope="module")
def w4a4(net: nn.Module) -> fx.GraphModule:
    return ready(net, bits="W4A4")


@pytest.fixture(scope="module")
def written(
    w4a4: fx.GraphModule, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ExportReport]:
    path = tmp_path_factory.mktemp("w4a4") / "student.onnx"
    yield Onnx().export(w4a4, SPEC, path, about={"scheme": "W4A4"})


def test_targets_are_found_by_name() -> None:
    assert available("datafree.export") == [
        "encodings", "onnx", "pt2", "pt2e", "pte", "tflite",
    ]  # fmt: skip
    assert load("datafree.export", "onnx", Exporter) is Onnx
    assert Onnx().name == "onnx"


class Small(nn.Module):
    """One convolution with an odd number of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3))


@pytest.mark.parametrize(
    ("bits", "symmetric", "weight_type", "kind", "granularity"),
    [
        (8, False, "auto", TensorProto.UINT8, "channel"),
        (8, True, "auto", TensorProto.INT8, "tensor"),
        (8, False, "int8", TensorProto.INT8, "channel"),
        (8, True, "uint8", TensorProto.UINT8, "channel"),
        (6, False, "int8", TensorProto.INT8, "channel"),
        (4, False, "auto", TensorProto.UINT4, "channel"),
        (4, False, "auto", TensorProto.UINT4, "tensor"),
        (4, True, "auto", TensorProto.INT4, "channel"),
        (3, False, "int8", TensorProto.INT4, "channel"),
        (3, True, "uint8", TensorProto.UINT4, "channel"),
        (2, True, "auto", TensorProto.INT4, "channel"),
    ],
)
def test_stored_weights(
    tmp_path: Path, bits: int, symmetric: bool, weight_type: Any, kind: int, granularity: str
) -> None:
    student = ready(
        trained(Small()),
        bits=f"W{bits}A32",
        symmetric_weights=symmetric,
        weight_granularity=granularity,
    )
    path = tmp_path / "student.onnx"
    Onnx(weight_type=weight_type).export(student, SPEC, path)
    stored = initializers(path)
    weight = student.get_submodule("conv").weight.detach().double().numpy()  # pyright: ignore
    assert stored["conv.weight_quantized"].data_type == kind
    zero = stored["conv.weight_zero_point"]
    signed = kind in (TensorProto.INT8, TensorProto.INT4)
    assert zero.data_type == (TensorProto.INT8 if signed else TensorProto.UINT8)
    small = kind in (TensorProto.INT4, TensorProto.UINT4)
    size = (weight.size + 1) // 2 if small else weight.size
    assert len(stored["conv.weight_quantized"].raw_data) == size
    # The codes, computed here from the definition of the grid.
    axes = (1, 2, 3) if granularity == "channel" else (0, 1, 2, 3)
    low = np.minimum(weight.min(axes, keepdims=True), 0)
    high = np.maximum(weight.max(axes, keepdims=True), 0)
    if symmetric:
        scale, zero_point = np.maximum(-low, high) / (2 ** (bits - 1) - 1), 0.0 * low
        limits = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    else:
        scale = (high - low) / (2**bits - 1)
        zero_point, limits = np.round(-low / scale), (0, 2**bits - 1)
    codes = np.clip(np.round(weight / scale) + zero_point, *limits)
    zeros = values(zero).reshape(zero_point.shape)
    found = values(stored["conv.weight_quantized"]) - zeros
    np.testing.assert_array_equal(found, codes - zero_point)
    # Integer kernels are fast on signed weights around 0 only.
    assert not zeros.any() or not signed or bits == 8
    np.testing.assert_allclose(
        values(stored["conv.weight_scale"]).ravel(), scale.ravel(), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("bits", "symmetric"), [(2, False), (3, False), (4, True), (5, True), (7, False)]
)
def test_narrow_activations_keep_their_range(
    net: nn.Module, tmp_path: Path, bits: int, symmetric: bool
) -> None:
    student = ready(net, bits=f"W8A{bits}", symmetric_activations=symmetric)
    path = tmp_path / "student.onnx"
    Onnx().export(student, SPEC, path)
    stored, clips = initializers(path), {node.input[1]: node for node in nodes(path, "Clip")}
    checked = 0
    for name, quantizer in student.named_modules():
        if not isinstance(quantizer, ActivationQuantizer) or quantizer.grid.bits == 8:
            continue
        low, high = (values(stored[limit]) for limit in clips[f"{name}.min"].input[1:])
        zero_point = values(stored[f"{name}.zero_point"])
        assert stored[f"{name}.zero_point"].data_type == TensorProto.UINT8
        # Signed codes are stored around 128: integer kernels know unsigned activations only.
        middle = 128 if symmetric and quantizer.grid.signed else 0
        assert zero_point == quantizer.zero_point.item() + middle
        codes = [low - middle, high - middle]
        if middle:
            assert codes == [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1]
        else:
            assert codes == [0, 2**bits - 1]
        checked += 1
    assert checked == 4


def test_full_width_activations_have_no_clip_of_their_own(net: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "student.onnx"
    report = Onnx().export(ready(net, bits="W8A8"), SPEC, path)
    assert not [node.name for node in nodes(path, "Clip") if node.name.endswith("_quantizer/Clip")]
    assert len(nodes(path, "QuantizeLinear")) == 5
    assert all(len(node.input) == 3 for node in nodes(path, "Conv"))
    assert [note[:17] for note in report.notes] == ["Quantizers stand "]
    assert not report.saturates


@pytest.mark.parametrize(
    ("bits", "placement"),
    [((8, 8), "every_input"), ((4, 8), "after_activation"), ((3, 3), "every_input")],
)
def test_the_standard_itself_says_what_the_student_says(
    net: nn.Module, tmp_path: Path, bits: tuple[int, int], placement: str
) -> None:
    student = ready(net, bits=f"W{bits[0]}A{bits[1]}", placement=placement)
    path = tmp_path / "student.onnx"
    Onnx().export(student, SPEC, path)
    batch = images(4)
    (found,) = ReferenceEvaluator(str(path)).run(None, {"images": batch.numpy()})  # pyright: ignore
    with torch.no_grad():
        parity = compare_outputs(student(batch), torch.from_numpy(np.asarray(found)))
    assert parity.noise < 1e-2


def test_file_description(written: ExportReport) -> None:
    model = onnx.load(written.path)
    assert model.ir_version == 10
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 21)]
    (given,), (result,) = model.graph.input, model.graph.output
    assert (given.name, result.name) == ("images", "logits")
    shape = given.type.tensor_type.shape.dim
    assert shape[0].dim_param == "batch" and [dim.dim_value for dim in shape[1:]] == [3, 9, 9]
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "input_shape": "[3, 9, 9]",
        "input_mean": "[0.5, 0.4, 0.3]",
        "input_std": "[0.2, 0.2, 0.1]",
        "input_channels": "RGB",
        "task": "classes",
        "scheme": "W4A4",
    }
    assert model.producer_name == "datafree"
    assert __file__.encode() not in written.path.read_bytes()
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_report(written: ExportReport, w4a4: fx.GraphModule) -> None:
    weights = [p for name, p in w4a4.named_parameters() if name.endswith("weight") and p.ndim > 1]
    norm = 4 * 7  # the one that cannot be folded
    assert written.unquantized_bytes == norm
    assert written.float_weight_bytes == 4 * sum(weight.numel() for weight in weights) + norm
    codes = sum((weight.numel() + 1) // 2 for weight in weights)
    channels = [len(weight) for weight in weights]
    assert written.weight_bytes == codes + sum(4 * n + n for n in channels) + norm
    assert written.bytes == written.path.stat().st_size
    assert written.opset == 21
    assert written.parity.images == 32 and written.parity.agreement == 100
    assert len(written.notes) == 1 and "--target onnxruntime" in written.notes[0]


@pytest.mark.parametrize("batch", [1, 3])
def test_any_batch_size(written: ExportReport, w4a4: fx.GraphModule, batch: int) -> None:
    parity = compare_outputs(
        predict(w4a4, images(batch)), predict(Onnx().run(written.path), images(batch))
    )
    assert parity.images == batch and parity.relative < 1e-3


def test_biases_below_8_bits_are_added_after_the_layer(written: ExportReport) -> None:
    assert all(
        len(node.input) == 2 for kind in ("Conv", "Gemm") for node in nodes(written.path, kind)
    )
    biases = [node for node in nodes(written.path, "Add") if node.name.endswith("/bias")]
    assert len(biases) == 5
    assert all(
        initializers(written.path)[node.input[1]].data_type == TensorProto.FLOAT for node in biases
    )


def test_no_float_weight_remains(written: ExportReport) -> None:
    floats = [t for t in initializers(written.path).values() if t.data_type == TensorProto.FLOAT]
    assert max(np.prod(tensor.dims) for tensor in floats) <= 9


def test_student_is_not_touched(net: nn.Module, tmp_path: Path) -> None:
    student = ready(net, bits="W4A8").to(memory_format=torch.channels_last)  # pyright: ignore
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with torch.no_grad():
        expected = student(images())
    Onnx().export(student, SPEC, tmp_path / "student.onnx")
    with torch.no_grad():
        assert torch.equal(student(images()), expected)
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


def test_batch_norms_of_a_student_end_in_its_scales(net: nn.Module, tmp_path: Path) -> None:
    """Fine-tuned with its norms kept: a runtime fuses none that stands before a quantizer."""
    student = insert_quantizers(capture(net, SPEC), Scheme(bits="W8A8"))
    minmax = load("datafree.calibrators", "minmax", Calibrator)()
    calibrate(student, [images(16, seed=1)], minmax)
    path = tmp_path / "student.onnx"
    report = Onnx().export(student, SPEC, path)
    # norm3 stands after an activation and before an add.
    assert [node.input[0] for node in nodes(path, "BatchNormalization")] == ["relu_1"]
    assert report.parity.agreement == 100


def test_disabled_quantizers_are_left_out(net: nn.Module, tmp_path: Path) -> None:
    student = ready(net, bits="W4A4")
    student.get_submodule("x_quantizer").enabled = False  # pyright: ignore
    student.get_submodule("head").weight_quantizer.enabled = False  # pyright: ignore
    path = tmp_path / "student.onnx"
    assert Onnx().export(student, SPEC, path).parity.relative < 1e-3
    assert len(nodes(path, "QuantizeLinear")) == 4
    assert "head.weight_quantized" not in initializers(path)


class Tokens(nn.Module):
    """A layer used twice, a linear layer on three dimensions, a 1-d convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(3, 3, 3, padding=1)
        self.mix = nn.Linear(9, 6)
        self.line = nn.Conv1d(27, 4, 3)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.twice(torch.relu(self.twice(x)))).flatten(1, 2)
        return self.head(torch.relu(self.line(torch.nn.functional.gelu(self.mix(x)))).flatten(1))


@pytest.mark.parametrize("bits", [(8, 8), (4, 4), (3, 32)])
def test_other_layers(tmp_path: Path, bits: tuple[int, int]) -> None:
    student = ready(trained(Tokens()), bits=f"W{bits[0]}A{bits[1]}")
    path = tmp_path / "student.onnx"
    report = Onnx().export(student, SPEC, path)
    assert report.parity.noise < 0.02
    assert {"twice", "mix", "line", "head"} == {
        name.partition(".weight_quantized")[0]
        for name in initializers(path)
        if "weight_quantized" in name
    }


class Corrupted(Onnx):
    """Halves one scale after writing."""

    def write(self, student: fx.GraphModule, spec: InputSpec, path: Path, about: About) -> Written:
        done = super().write(student, spec, path, about)
        model = onnx.load(path)
        scale = next(t for t in model.graph.initializer if t.name == "last.weight_scale")
        scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) / 2, scale.name))
        onnx.save(model, path)
        return done


def test_a_wrong_file_is_refused_and_not_kept(w4a4: fx.GraphModule, tmp_path: Path) -> None:
    path = tmp_path / "student.onnx"
    path.write_text("the old file")
    with pytest.raises(ParityError, match=r"the scales of the weight of last differ"):
        Corrupted().export(w4a4, SPEC, path, force=True)
    assert path.read_text() == "the old file"
    assert list(tmp_path.iterdir()) == [path]


class Unread(Corrupted):
    """Its file is not read back, only run."""

    def verify(self, student: fx.GraphModule, path: Path) -> None:
        del student, path


def test_a_wrong_answer_is_refused_too(w4a4: fx.GraphModule, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"identical predictions on 32 images, logits off by"):
        Unread().export(w4a4, SPEC, tmp_path / "student.onnx")


def test_limits_can_be_set(w4a4: fx.GraphModule, tmp_path: Path) -> None:
    path = tmp_path / "student.onnx"
    report = Unread(tolerance=0, noise=10).export(w4a4, SPEC, path)
    assert report.parity.noise > 0.1 and path.exists()


def test_an_existing_file_is_kept(w4a4: fx.GraphModule, tmp_path: Path) -> None:
    path = tmp_path / "student.onnx"
    path.write_text("mine")
    with pytest.raises(OutputExistsError, match=r"student\.onnx exists"):
        Onnx().export(w4a4, SPEC, path)
    assert path.read_text() == "mine"
    assert Onnx().export(w4a4, SPEC, path, force=True).bytes == path.stat().st_size


def test_a_student_without_ranges_is_refused(net: nn.Module, tmp_path: Path) -> None:
    student = insert_quantizers(fold_batch_norms(capture(net, SPEC)), Scheme())
    with pytest.raises(ExportError, match="x_quantizer has no range yet"):
        Onnx().export(student, SPEC, tmp_path / "student.onnx")


def test_an_operator_without_onnx_form_is_named(tmp_path: Path) -> None:
    class Bessel(Tokens):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.special.bessel_j0(x))

    student = ready(trained(Bessel()), placement="after_activation")
    with pytest.raises(ExportError, match="bessel_j0"):
        Onnx().export(student, SPEC, tmp_path / "student.onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_not_onnx_is_named(tmp_path: Path) -> None:
    path = tmp_path / "student.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(ExportError, match=r"cannot load .*student.onnx"):
        Onnx().run(path)


class Bright(nn.Module):
    """Large activations times large weights of one sign: what 16-bit pair sums cannot hold."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(16, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)
        for layer in (self.first, self.second):
            nn.init.constant_(layer.weight, 0.01)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))


def saturating_cpu() -> bool:
    flags = Path("/proc/cpuinfo")
    if platform.machine() not in ("x86_64", "AMD64") or not flags.exists():
        pytest.skip("how this CPU multiplies is not known")
    return "vnni" not in flags.read_text()


@pytest.mark.parametrize("weight_type", ["int8", "uint8"])
def test_saturation_is_detected(tmp_path: Path, weight_type: Any) -> None:
    spec = InputSpec(shape=(16, 8, 8), mean=(0.0,) * 16, std=(1.0,) * 16, classes=5)
    student = ready(Bright().eval(), spec, symmetric_weights=True)
    check = images(8, spec).abs()
    report = Onnx(weight_type=weight_type).export(student, spec, tmp_path / "s.onnx", check=check)
    expected = saturating_cpu() and weight_type == "int8"
    assert report.saturates is expected
    assert ("W7A8" in " ".join(report.notes)) is (weight_type == "int8")


@pytest.mark.integration
@pytest.mark.parametrize(("bits", "share"), [((8, 8), 0.26), ((4, 4), 0.16)])
def test_resnet20(
    shared: Path, shared_networks: ModuleType, tmp_path: Path, bits: tuple[int, int], share: float
) -> None:
    network = shared_networks.NETWORKS["resnet20_cifar10jpeg"]
    spec = InputSpec(shape=(3, 32, 32), mean=network.mean, std=network.std, classes=10)
    student = ready(
        shared_networks.build("resnet20_cifar10jpeg"), spec, bits=f"W{bits[0]}A{bits[1]}"
    )
    with np.load(shared / "data" / "cifar10jpeg_test.npz") as data:
        pixels = torch.from_numpy(data["images"][:400]).permute(0, 3, 1, 2).float() / 255
    check = (pixels - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(spec.std).view(3, 1, 1)
    report = Onnx().export(student, spec, tmp_path / "student.onnx", check=check)
    assert report.parity.agreement >= 99
    assert report.weight_bytes <= share * report.float_weight_bytes
