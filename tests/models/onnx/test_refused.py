"""ONNX files that are refused: one line, what was wrong, where, what to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from datafree.models.hubs import operators_of_torchvision
from datafree.models.onnx import _converter
from onnx_files import FLOAT, drawn, head, model, node, save, small
from teachers import NORMAL, complaint, teacher

ASKED = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def refused(path: Path, **options: Any) -> str:
    return complaint(lambda: teacher(str(path), **(ASKED | options)))


def refused_model(made: onnx.ModelProto, folder: Path) -> str:
    return refused(save(folder / "net.onnx", made))


def _with(first: onnx.NodeProto, **weights: Any) -> onnx.ModelProto:
    """`first`, from images to ``found``, before a head for three channels."""
    tail, more = head("found", 3)
    return model([first, *tail], more | weights)


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "none.onnx"
    assert refused(path) == f"cannot read {path}: No such file or directory"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a network", os.urandom(2000)])
def test_no_onnx_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    assert refused(path).startswith(f"{path} is no ONNX file, or damaged: ")


@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
def test_truncated_file(share: float, tmp_path: Path) -> None:
    path = save(tmp_path / "net.onnx", small())
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert f"{path} is" in refused(path) and "damaged" in refused(path)


def test_wrong_graph(tmp_path: Path) -> None:
    made = small()
    made.graph.node[2].input[0] = "nobody"
    message = refused_model(made, tmp_path)
    assert "is damaged, or of another version of ONNX than" in message and "nobody" in message


def test_output_without_a_shape_is_read(tmp_path: Path) -> None:
    made = small()
    made.graph.output[0].type.tensor_type.ClearField("shape")
    assert teacher(str(save(tmp_path / "net.onnx", made)), **ASKED).spec.classes == 5


def test_file_of_a_later_onnx(tmp_path: Path) -> None:
    made = small()
    made.opset_import[0].version = 999
    message = refused_model(made, tmp_path)
    assert f"uses opset 999, and onnx {onnx.__version__} knows those up to" in message


def test_unknown_normalisation(tmp_path: Path) -> None:
    path = save(tmp_path / "net.onnx", small())
    message = complaint(lambda: teacher(str(path)))
    assert "does not say how its images are normalised: give mean and std" in message


def test_weights_beside_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "net.onnx", small())
    assert refused(path, weights_file=tmp_path / "w.safetensors") == (
        f"{path} brings its own weights: leave out weights_file"
    )


def test_another_shape(tmp_path: Path) -> None:
    path = save(tmp_path / "net.onnx", small())
    assert refused(path, input_shape=(3, 9, 8)) == (
        f"{path} was exported for images of 3, 8, 8 (channels, height, width), not 3, 9, 8: "
        "leave out input_shape"
    )


def test_free_sizes_are_asked_for(tmp_path: Path) -> None:
    path = save(tmp_path / "net.onnx", small(shape=(3, "height", "width")))
    assert refused(path) == f"{path} does not say what input it takes: give input_shape as C,H,W"
    assert teacher(str(path), input_shape=(3, 12, 9), **ASKED).spec.shape == (3, 12, 9)


@pytest.mark.parametrize(
    ("kind", "name", "advice"),
    [
        (TensorProto.INT64, "int64", "the embedding, mask or conversion that reads it"),
        (TensorProto.INT8, "int8", "the embedding, mask or conversion that reads it"),
        (TensorProto.BOOL, "bool", "the embedding, mask or conversion that reads it"),
        (10, "float16", "that conversion"),
    ],
)
def test_input_of_another_type(kind: int, name: str, advice: str, tmp_path: Path) -> None:
    tail, weights = head("cast", 3)
    made = model([node("Cast", "images", "cast", to=FLOAT), *tail], weights, kind=kind)
    told = refused_model(made, tmp_path)
    assert f"takes {name} (images): " in told
    assert f"export the network behind {advice}" in told


@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.UINT8])
def test_ids_or_bytes_beside_an_image(kind: int, tmp_path: Path) -> None:
    made = small()
    made.graph.input.append(helper.make_tensor_value_info("ids", kind, (1, 4)))
    assert "(ids): inputs are float32, or one image of uint8" in refused_model(made, tmp_path)


def test_inputs_of_other_batches(tmp_path: Path) -> None:
    made = small()
    made.graph.input.append(helper.make_tensor_value_info("age", FLOAT, (4, 4)))
    assert "takes any number of images, 4 of age at once" in refused_model(made, tmp_path)
    made.graph.input[1].CopyFrom(helper.make_tensor_value_info("age", FLOAT, (4,)))
    assert "takes age without a batch" in refused_model(made, tmp_path)


def test_half_weights(tmp_path: Path) -> None:
    made = _with(node("Identity", "images", "found"), spare=np.zeros(3, np.float16))
    assert "computes in float16 (spare): export the network in float32" in refused_model(
        made, tmp_path
    )


QUANTIZED: dict[str, Callable[[], onnx.ModelProto]] = {
    "QuantizeLinear": lambda: _with(
        node("QuantizeLinear", "images scale zero", "found"),
        scale=np.float32(0.1), zero=np.uint8(0),
    ),
    "QLinearConv": lambda: _with(
        node("QLinearConv", "images s z w s z s z", "found"),
        s=np.float32(0.1), z=np.uint8(0), w=np.zeros((3, 3, 1, 1), np.uint8),
    ),
    "MatMulInteger": lambda: _with(
        node("MatMulInteger", "images w", "found"), w=np.zeros((8, 8), np.uint8)
    ),
}  # fmt: skip


@pytest.mark.parametrize("op", QUANTIZED)
def test_quantized_file(op: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    message = refused_model(QUANTIZED[op](), tmp_path)
    if op == "QuantizeLinear":
        assert message == (
            f"{path} is quantized already, by QuantizeLinear (node found): give the float file it "
            "was made from"
        )
    else:
        assert "is quantized already" in message or "is damaged" in message


def test_operator_of_another_domain(tmp_path: Path) -> None:
    made = _with(
        node("FusedConv", "images w", "found", domain="com.microsoft"), w=drawn(3, 3, 1, 1)
    )
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert "has an operator that is not ONNX's own: com.microsoft.FusedConv (node found)" in (
        refused_model(made, tmp_path)
    )


def test_training_mode(tmp_path: Path) -> None:
    made = small()
    made.graph.node[1].attribute.append(helper.make_attribute("training_mode", 1))
    made.graph.node[1].output.extend(["mean", "var"])
    message = refused_model(made, tmp_path)
    assert "exported in training mode, as BatchNormalization (node norm) tells: call" in message


def test_operator_that_the_converter_lacks(tmp_path: Path) -> None:
    first = node(
        "AveragePool", "images", "found", kernel_shape=[2, 2], dilations=[2, 2], ceil_mode=1
    )
    tail, weights = head("found", 3)
    message = refused_model(model([first, *tail], weights, opset=19), tmp_path)
    assert "onnx2pytorch does not convert AveragePool (node found): " in message


def test_operator_without_a_meaning_here(tmp_path: Path) -> None:
    """Values decide how large the result is: no graph for any image can be written down."""
    nodes = [
        node("NonZero", "images", "places"),
        node("Cast", "places", "found", to=FLOAT),
        node("ReduceSum", "found axes", "logits", keepdims=0),
    ]
    message = refused_model(model(nodes, {"axes": np.array([1])}), tmp_path)
    assert "what NonZero (node places) returns depends on the values of an image" in message


def test_computed_weights(tmp_path: Path) -> None:
    nodes = [
        node("ReduceMean", "images", "kernel", axes=[0], keepdims=1),
        node("Conv", "images kernel", "found"),
    ]
    tail, weights = head("found", 1)
    message = refused_model(model([*nodes, *tail], weights), tmp_path)
    assert "the weights of Conv (node found) are computed from images" in message


def _external(folder: Path, location: str) -> Path:
    """A file whose weights lie at `location`."""
    path = folder / "net.onnx"
    onnx.save(small(), path, save_as_external_data=True, location="net.data", size_threshold=0)
    made = onnx.load(path, load_external_data=False)
    for tensor in made.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(made.SerializeToString())
    return path


def test_external_data(tmp_path: Path) -> None:
    path = _external(tmp_path, "net.data")
    assert teacher(str(path), **ASKED).spec.classes == 5
    (tmp_path / "net.data").unlink()
    assert refused(path) == (
        f"{path} keeps its weights in net.data, which is not there: put it beside the model"
    )


@pytest.mark.parametrize("where", ["../net.data", "absolute", "link"])
def test_external_data_elsewhere(where: str, tmp_path: Path) -> None:
    inside = tmp_path / "model"
    inside.mkdir()
    path = _external(
        inside, {"absolute": str(tmp_path / "net.data"), "link": "link"}.get(where, where)
    )
    (inside / "net.data").rename(tmp_path / "net.data")
    (inside / "link").symlink_to(tmp_path / "net.data")
    message = refused(path)
    assert message.startswith(f"the external data of {path} are refused: ")


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    made = small()
    weight = next(t for t in made.graph.initializer if t.name == "conv.weight")
    weight.CopyFrom(
        onnx.numpy_helper.from_array(np.full((6, 3, 3, 3), np.nan, np.float32), weight.name)
    )
    message = refused_model(made, tmp_path)
    assert "conv.weight holds 162 NaN or infinite values of 162" in message


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    tail, weights = head("found", 3)
    made = model([node("Sqrt", "images", "found"), *tail], weights)
    assert "returns NaN or infinite values, by onnxruntime too" in refused_model(made, tmp_path)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            ModuleNotFoundError("No module named 'torchvision'", name="torchvision"),
            "ONNX files are read with onnx2pytorch, and torchvision is not installed: "
            "pip install 'datafree[onnx]'",
        ),
        (RuntimeError("built for\nanother torch"), "onnx2pytorch cannot be imported: built for"),
    ],
)
def test_missing_or_broken_converter(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> object:
        raise error

    operators_of_torchvision()
    monkeypatch.setattr(_converter, "importlib", SimpleNamespace(import_module=fail))
    assert complaint(_converter.library.__wrapped__) == told


def test_folded_batch_norms_are_told(tmp_path: Path) -> None:
    tail, weights = head("conv", 6)
    made = model([node("Conv", "images w", "conv"), *tail], weights | {"w": drawn(6, 3, 3, 3)})
    found = teacher(str(save(tmp_path / "net.onnx", made)), **ASKED)
    (note,) = found.notes
    assert note.startswith(f"{tmp_path / 'net.onnx'} has no batch norms: they were folded")
    assert "optimize=False" in note and "TrainingMode.PRESERVE" in note
    assert not teacher(str(save(tmp_path / "net.onnx", small())), **ASKED).notes


def test_one_channel_asks_for_one_mean(tmp_path: Path) -> None:
    tail, weights = head("conv", 6)
    nodes = [node("Conv", "images w", "conv"), *tail]
    made = model(nodes, weights | {"w": drawn(6, 1, 3, 3)}, shape=(1, 8, 8))
    assert teacher(str(save(tmp_path / "net.onnx", made)), **NORMAL).spec.shape == (1, 8, 8)
