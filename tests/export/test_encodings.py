"""Encodings say what the student rounds, tensor by tensor of a float network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import fx

from datafree.calibrators.base import calibrate
from datafree.calibrators.minmax import MinMax
from datafree.config import Scheme
from datafree.errors import ExportError, OutputExistsError
from datafree.export.encodings import Encodings, rounded
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.graph.settle import settle
from datafree.quant.modules import QUANTIZED, ActivationQuantizer
from residual import RESIDUAL_SPEC, Branches, residual_images

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def made() -> fx.GraphModule:
    folded = fold_batch_norms(capture(Branches(), RESIDUAL_SPEC))
    student = insert_quantizers(folded, Scheme(target="qnn"), RESIDUAL_SPEC)
    calibrate(student, [residual_images(32, 0)], MinMax())
    return settle(student)


@pytest.fixture(scope="module")
def written(made: fx.GraphModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qnn") / "student.encodings"
    report = Encodings().export(made, RESIDUAL_SPEC, path, check=residual_images(16, 1))
    assert report.parity.mismatches == 0 and report.parity.noise < 0.01
    return path


def test_the_network_beside_is_float(written: Path) -> None:
    assert sorted(p.name for p in written.parent.iterdir()) == ["student.encodings", "student.onnx"]
    model = onnx.load(written.with_suffix(".onnx"))
    onnx.checker.check_model(model, full_check=True)
    assert not [n for n in model.graph.node if "Quantize" in n.op_type or n.domain]


def test_every_quantizer_has_an_encoding_of_a_tensor(made: fx.GraphModule, written: Path) -> None:
    told = json.loads(written.read_text(encoding="utf-8"))
    graph = onnx.load(written.with_suffix(".onnx")).graph
    tensors = {name for node in graph.node for name in node.output} | {"images"}
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    assert set(told["activation_encodings"]) <= tensors
    assert {"images", "logits"} <= set(told["activation_encodings"])
    quantizers = [m for m in made.modules() if isinstance(m, ActivationQuantizer)]
    assert len(told["activation_encodings"]) == len(quantizers)
    layers = [m for m in made.modules() if isinstance(m, QUANTIZED)]
    assert len(told["param_encodings"]) == len(layers) == 9
    for name, entries in told["param_encodings"].items():
        assert len(entries) == len(weights[name])
        assert all(entry["is_symmetric"] == "True" for entry in entries)


def test_entries_reach_from_min_to_max(written: Path) -> None:
    told = json.loads(written.read_text(encoding="utf-8"))
    for kind in ("activation_encodings", "param_encodings"):
        for entries in told[kind].values():
            for entry in entries:
                assert (entry["bitwidth"], entry["dtype"]) == (8, "int")
                assert entry["min"] == pytest.approx(entry["scale"] * entry["offset"])
                assert entry["max"] - entry["min"] == pytest.approx(255 * entry["scale"])
                assert -255 <= entry["offset"] <= 0 and entry["min"] <= 0 <= entry["max"]


def test_weights_rounded_by_the_file_are_the_students(made: fx.GraphModule, written: Path) -> None:
    told: Any = json.loads(written.read_text(encoding="utf-8"))
    model = rounded(onnx.load(written.with_suffix(".onnx")), told)
    found = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for path, layer in made.named_modules():
        if isinstance(layer, QUANTIZED):
            expected = layer.weight_quantizer(layer.weight).detach().numpy()
            np.testing.assert_allclose(found[f"{path}.weight"], expected, rtol=1e-6, atol=1e-7)


def test_encodings_of_another_network_are_refused(written: Path) -> None:
    told: Any = json.loads(written.read_text(encoding="utf-8"))
    told["activation_encodings"]["elsewhere"] = told["activation_encodings"]["images"]
    with pytest.raises(ExportError, match="no tensor elsewhere"):
        rounded(onnx.load(written.with_suffix(".onnx")), told)


def test_a_network_that_is_there_is_not_replaced(made: fx.GraphModule, tmp_path: Path) -> None:
    beside = tmp_path / "student.onnx"
    beside.write_text("mine", encoding="utf-8")
    with pytest.raises(OutputExistsError, match="exists"):
        Encodings().export(made, RESIDUAL_SPEC, tmp_path / "student.encodings")
    assert [p.name for p in tmp_path.iterdir()] == ["student.onnx"]
    assert beside.read_text(encoding="utf-8") == "mine"


def test_logits_are_computed_from_the_two_files_alone(made: fx.GraphModule, written: Path) -> None:
    images = residual_images(8, 3)
    logits = Encodings().run(written)(images)
    with torch.no_grad():
        expected = made(images)
    assert (logits.argmax(1) == expected.argmax(1)).all()
    assert float((logits - expected).abs().max()) < 0.05 * float(expected.max() - expected.min())
