"""onnxruntime on the processor, with its default settings."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from datafree.runtimes._graph import Graph, load_graph, tagged, tags
from datafree.runtimes._kernels import Executed, kernels
from datafree.runtimes._reasons import onnxruntime_reason
from datafree.runtimes._timing import Given
from datafree.runtimes.base import Call, Kernels, Runtime, refusal

_INTEGER = frozenset({
    "QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "ConvInteger",
    "MatMulInteger", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QAttention",
})  # fmt: skip
_FLOAT = frozenset({
    "Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul",
    "FusedMatMul", "MatMulNBits", "TransposeMatMul", "Attention", "LSTM", "GRU", "RNN",
})  # fmt: skip
_SILENT = 4  # what onnxruntime has to say comes back as an exception
_PROFILED_RUNS = 4


class OnnxRuntime(Runtime):
    """onnxruntime with its default settings.

    Kernels are read off the graph it saves after all its optimisations, the one it runs. A layer
    gets an integer kernel only if every input comes from a DequantizeLinear and its only reader is
    a QuantizeLinear, with at most one Relu or Clip between that the quantizer makes needless.
    """

    package: ClassVar[str] = "onnxruntime"
    processor_time: ClassVar[bool] = True

    def kernels(self, path: Path, shape: Sequence[int] | None = None) -> Kernels:
        """See `Runtime.kernels`."""
        graph = load_graph(path)
        with tempfile.TemporaryDirectory(prefix="datafree-") as folder:
            marked, optimised = Path(folder, "marked.onnx"), Path(folder, "optimised.onnx")
            onnx.save(tagged(graph), marked)
            options = _options(1)
            options.optimized_model_filepath = str(optimised)
            options.enable_profiling = shape is not None
            options.profile_file_prefix = str(Path(folder, "profile"))
            session = self._session(marked, options, path)
            times: dict[str, float] = {}
            if shape is not None:
                self._call(session, path, _zeros(graph, shape))
                times = _times(Path(session.end_profiling()))
            executed = [_executed(node, times) for node in onnx.load(optimised).graph.node]
        return kernels(graph, executed, onnxruntime_reason)

    def opened(self, path: Path, threads: int) -> Call:
        """See `Runtime.opened`."""
        session = self._session(path, _options(threads), path)

        def call(given: Given) -> object:
            try:
                return session.run(None, _feeds(session, given))
            except Exception as error:  # its errors have no common base
                raise refusal(self, path, "run", error) from error

        return call

    def _session(self, path: Path, options: Any, shown: Path) -> onnxruntime.InferenceSession:
        """`path` loaded; a refusal speaks of `shown`."""
        try:
            return onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors have no common base
            raise refusal(self, shown, "load", error) from error

    def _call(self, session: onnxruntime.InferenceSession, path: Path, given: Given) -> None:
        try:
            for _ in range(_PROFILED_RUNS):
                session.run(None, _feeds(session, given))
        except Exception as error:  # its errors have no common base
            raise refusal(self, path, "run", error) from error


def _feeds(session: onnxruntime.InferenceSession, given: Given) -> dict[str, NDArray[Any]]:
    """What is given, by the names of inputs."""
    if isinstance(given, np.ndarray):
        return {session.get_inputs()[0].name: given}
    return dict(given)


def _options(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    options.intra_op_num_threads = threads
    return options


def _zeros(graph: Graph, shape: Sequence[int]) -> Given:
    """The smallest batch a file takes: one image, unless its batch is fixed."""
    batch = graph.input_shape()[0] or 1
    return graph.given(np.zeros((batch, *shape), np.float32))


def _executed(node: onnx.NodeProto, times: dict[str, float]) -> Executed:
    return Executed(
        nodes=tags(node.name),
        layer=node.op_type in _INTEGER or node.op_type in _FLOAT,
        integer=node.op_type in _INTEGER,
        time=times.get(node.name),
    )


def _times(profile: Path) -> dict[str, float]:
    """Microseconds of the kernels in a profile by node, the fastest of all runs."""
    events: list[dict[str, Any]] = json.loads(profile.read_text(encoding="utf-8"))
    found: dict[str, float] = {}
    for event in events:
        name, ending = str(event.get("name", "")), "_kernel_time"
        if event.get("cat") == "Node" and name.endswith(ending):
            node, took = name.removesuffix(ending), float(event["dur"])
            found[node] = min(found.get(node, took), took)
    return found
