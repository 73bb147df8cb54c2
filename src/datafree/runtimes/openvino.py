"""OpenVINO on the processor, with its default settings."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx

from datafree.runtimes._graph import load_graph, tagged, tags
from datafree.runtimes._kernels import Executed, kernels
from datafree.runtimes._reasons import openvino_reason
from datafree.runtimes._timing import Given
from datafree.runtimes.base import Call, Kernels, Runtime, refusal

_LAYERS = frozenset({
    "Convolution", "Deconvolution", "FullyConnected", "MatMul", "RNNCell", "RNNSeq",
})  # fmt: skip
_PROFILED_RUNS = 4


class OpenVINO(Runtime):
    """OpenVINO with its default settings.

    Kernels are read off its execution graph: a layer is an integer one where the primitive that
    carries it out ends in `I8`. It needs a DequantizeLinear on both inputs, weights as int8 with
    zero point 0, and fuses freely.
    """

    float32: bool = False
    """Keep to float32 where OpenVINO by itself takes bfloat16: on processors that have it."""

    package: ClassVar[str] = "openvino"
    extra: ClassVar[str] = "openvino"
    processor_time: ClassVar[bool] = True

    @property
    def bfloat16(self) -> bool:
        """Whether it computes float layers of this processor in bfloat16."""
        found = _package().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return not self.float32 and "BF16" in found

    def kernels(self, path: Path, shape: Sequence[int] | None = None) -> Kernels:
        """See `Runtime.kernels`."""
        graph = load_graph(path)
        with tempfile.TemporaryDirectory(prefix="datafree-") as folder:
            marked = Path(folder, "marked.onnx")
            onnx.save(tagged(graph), marked)
            compiled = self._compiled(marked, path, 1, profile=shape is not None)
            times: dict[str, float] = {}
            if shape is not None:
                batch = graph.input_shape()[0] or 1
                images = graph.given(np.zeros((batch, *shape), np.float32))
                times = self._times(compiled, images, path)
            steps = [_facts(node) for node in compiled.get_runtime_model().get_ordered_ops()]
        executed = [
            Executed(
                nodes=tags(facts.get("originalLayersNames", "")),
                layer=facts.get("layerType") in _LAYERS,
                integer=facts.get("primitiveType", "").endswith("_I8"),
                time=times.get(name),
            )
            for name, facts in steps
        ]
        return kernels(graph, executed, openvino_reason)

    def opened(self, path: Path, threads: int) -> Call:
        """See `Runtime.opened`."""
        return self._call(self._compiled(path, path, threads), path)[0]

    def _call(self, compiled: Any, path: Path) -> tuple[Call, Any]:
        """A compiled file as a function, and the request that then knows times."""
        openvino = _package()
        request, first = compiled.create_infer_request(), compiled.input(0)
        fitting: set[tuple[object, ...]] = set()

        def call(given: Given) -> object:
            feeds = {first.any_name: given} if isinstance(given, np.ndarray) else dict(given)
            # A request computes something of images that do not fit, instead of refusing them.
            for name, images in feeds.items():
                wanted = compiled.input(name).partial_shape
                if (name, images.shape) not in fitting:
                    if not wanted.compatible(openvino.PartialShape(list(images.shape))):
                        said = f"its input is {wanted}, the images are {images.shape}"
                        raise refusal(self, path, "run", ValueError(said))
                    fitting.add((name, images.shape))
            try:
                return request.infer(feeds)
            except RuntimeError as error:
                raise refusal(self, path, "run", error) from error

        return call, request

    def _compiled(self, path: Path, shown: Path, threads: int, *, profile: bool = False) -> Any:
        """`path` ready to run; a refusal speaks of `shown`."""
        _ = self.version  # refuses where it is not installed
        openvino = _package()
        settings: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "PERF_COUNT": profile,
        }  # fmt: skip
        if self.float32:
            settings["INFERENCE_PRECISION_HINT"] = "f32"
        try:
            return openvino.Core().compile_model(str(path), "CPU", settings)
        except RuntimeError as error:
            raise refusal(self, shown, "load", error) from error

    def _times(self, compiled: Any, images: Given, path: Path) -> dict[str, float]:
        """Microseconds by node of the execution graph, the fastest of all runs."""
        call, request = self._call(compiled, path)
        found: dict[str, float] = {}
        for _ in range(_PROFILED_RUNS):
            call(images)
            for info in request.profiling_info:
                took = info.real_time.total_seconds() * 1e6
                found[info.node_name] = min(found.get(info.node_name, took), took)
        return found


def _package() -> Any:
    """OpenVINO itself; by name, since a type checker without it takes this file for it."""
    return importlib.import_module("openvino")


def _facts(node: Any) -> tuple[str, dict[str, str]]:
    """Name of a node of the execution graph, and what is told of it."""
    told = {key: str(value.astype(str)) for key, value in node.get_rt_info().items()}
    return str(node.get_friendly_name()), told
