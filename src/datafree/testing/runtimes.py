"""What every runtime has to keep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from datafree.config import Frozen
from datafree.errors import InferenceError
from datafree.runtimes import Runtime
from datafree.testing.contract import Contract

_SHAPE = (4, 9, 9)


class RuntimeContract(Contract):
    """A runtime says what it does with every layer of a file, and runs it."""

    package = "datafree.runtimes"
    base: type[Frozen] = Runtime
    method: Runtime
    """The runtime under test."""

    def chosen(self) -> Runtime:
        """The runtime under test."""
        return self.method

    def written(self, folder: Path) -> Path:
        """Two float convolutions with a Relu between, for any batch."""
        rng = np.random.default_rng(0)
        weights = [
            numpy_helper.from_array(rng.standard_normal((4, 4, 3, 3), np.float32), f"{n}.weight")
            for n in ("first", "second")
        ]
        nodes = [
            helper.make_node("Conv", ["images", "first.weight"], ["a"], "first"),
            helper.make_node("Relu", ["a"], ["b"], "relu"),
            helper.make_node("Conv", ["b", "second.weight"], ["logits"], "second"),
        ]
        inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, ("n", *_SHAPE))]
        outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("n", 4, 5, 5))]
        graph = helper.make_graph(nodes, "two", inputs, outputs, weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        path = folder / "two.onnx"
        onnx.save(model, path)
        return path

    def test_every_layer_of_a_float_file_is_named(self, tmp_path: Path) -> None:
        """With its share of the time where the runtime tells it; the file is left alone."""
        path = self.written(tmp_path)
        before = path.read_bytes()
        for shape in (None, _SHAPE):
            found = self.method.kernels(path, shape)
            assert (found.integer, found.total) == (0, 2)
            assert [layer.name for layer in found.floats] == ["first", "second"]
            assert all(layer.reason for layer in found.floats)
            shares = [layer.share for layer in found.floats if layer.share is not None]
            assert all(0 <= share <= 1 for share in shares) and sum(shares) <= 1
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    def test_a_file_runs_with_any_batch_and_number_of_threads(self, tmp_path: Path) -> None:
        """A measurement has an entry for each."""
        path = self.written(tmp_path)
        for threads in (1, 2):
            call = self.method.opened(path, threads)
            for batch in (1, 3):
                call(np.ones((batch, *_SHAPE), np.float32))
            with pytest.raises(InferenceError, match=r"two\.onnx"):
                call(np.ones((1, 2, 9, 9), np.float32))
        found = self.method.measure(
            {"a": path, "b": path}, _SHAPE, batches=(1, 2), threads=(1,), seconds=0.05
        )
        assert [(f.file, f.threads, f.batch) for f in found] == [
            ("a", 1, 1), ("b", 1, 1), ("a", 1, 2), ("b", 1, 2),
        ]  # fmt: skip
        assert all(0 < f.low <= f.milliseconds <= f.high and f.runs > 0 for f in found)

    def test_what_is_no_file_of_this_kind_is_refused(self, tmp_path: Path) -> None:
        """The message names the file."""
        path = tmp_path / "broken.onnx"
        path.write_bytes(b"no model")
        for attempt in (lambda: self.method.kernels(path), lambda: self.method.opened(path, 1)):
            with pytest.raises(InferenceError, match=r"broken\.onnx"):
                attempt()
