"""OpenVINO: what is read off its execution graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datafree.errors import InferenceError
from datafree.runtimes.openvino import OpenVINO
from onnx_graphs import Draft, conv, saved

pytest.importorskip("openvino")


def test_every_layer_is_found_though_outputs_lend_their_names(tmp_path: Path) -> None:
    """OpenVINO calls what makes an output of the network by that output."""
    draft = Draft()
    first = draft.quantized(draft.node("Relu", [conv(draft)], "r"), "a")
    weight = draft.constant("net.second.weight", np.ones((8, 8, 3, 3), np.float32))
    model = draft.model(draft.node("Conv", [first, weight], "t", name="net.second"))
    found = OpenVINO().kernels(saved(model, tmp_path), (8, 12, 12))
    assert (found.integer, found.total) == (1, 2)
    (layer,) = found.floats
    assert layer.name == "net.second"
    assert layer.share is not None and 0 < layer.share < 1


def test_a_product_is_found_behind_the_bias_it_took_in(tmp_path: Path) -> None:
    draft = Draft()
    weight = draft.constant("net.head.weight", np.ones((8, 4), np.float32))
    y = draft.node("MatMul", ["x", weight], "y", name="net.head")
    bias = draft.constant("b", np.ones(4, np.float32))
    y = draft.node("Relu", [draft.node("Add", [y, bias], "added")], "r")
    found = OpenVINO().kernels(saved(draft.model(y, shape=("n", 8)), tmp_path), (8,))
    assert [layer.name for layer in found.floats] == ["net.head"]
    assert found.floats[0].share is not None


def test_a_file_it_cannot_compile_is_refused(tmp_path: Path) -> None:
    draft = Draft()
    path = saved(draft.model(draft.node("NoSuchOperator", ["x"], "y")), tmp_path)
    said = r"openvino .* cannot load .*draft\.onnx: .*for operations: NoSuchOperator"
    with pytest.raises(InferenceError, match=said):
        OpenVINO().kernels(path)


def test_images_of_another_shape_are_refused(tmp_path: Path) -> None:
    draft = Draft()
    path = saved(draft.model(conv(draft)), tmp_path)
    with pytest.raises(InferenceError, match=r"cannot run .*draft\.onnx"):
        OpenVINO().opened(path, 1)(np.zeros((1, 3, 12, 12), np.float32))
    with pytest.raises(InferenceError, match=r"cannot run .*draft\.onnx"):
        OpenVINO().kernels(path, (3, 12, 12))
