"""A run's file in the runtime it is made for: integer layers, speed over float, parity."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks.kinds.base import Bench, Kind
from benchmarks.networks import NETWORKS, Network
from benchmarks.tools import by_onnxruntime
from datafree.cli.runtimes import by_reason
from datafree.config import RunConfig
from datafree.export.onnx import Onnx
from datafree.runs.pipeline import Result
from datafree.runs.runtime import float_file, runtime_named
from datafree.runtimes import Kernels, Latency, Runtime, integer_instructions
from datafree.runtimes.openvino import OpenVINO
from datafree.tensors import random_numbers

Predict = Callable[[Tensor], Tensor]
_BATCHES = (1, 8)
_FEW = 64  # test images that a run measures itself on


class InRuntime(Kind):
    """Layers with integer kernels, speed over float with one thread, parity with the student.

    `speed_1` and `speed_8` are the time of the float network over that of the student with one
    image and eight at once. `identical` is the percentage of images for which the file and the
    integer model answer the same, `difference` the largest of two logits over the spread of all, in
    percent: in onnxruntime in its exact mode, `default` beside them with the settings it has.

    OpenVINO computes float layers in bfloat16 where the processor has it: `float32_1` and
    `float32_8` are then speed-ups where it keeps to float32, for both files.

    The images are the labelled test images where there are some, and Gaussian noise elsewhere.
    """

    beside: Literal["onnxruntime", "W8A8"] | None = None
    """Time another file as well: that of onnxruntime's quantizer on the same images, or that of the
    same run at 8 bits. `beside_1` and `beside_8` are its time over the student's."""
    time_limit: float = 12.0
    """Seconds of timed runs."""
    compared: int = 64
    """Images of noise."""

    def measure(self, config: RunConfig, bench: Bench) -> dict[str, Any]:
        """See the base class."""
        network, runtime = bench.network(config), runtime_named(config.target)
        # What the run itself says of accuracy is measured below, of file and student alike.
        quiet = config.model_copy(update={"latency": False, "limit": _FEW})
        with TemporaryDirectory() as name:
            folder = Path(name)
            result = self.run(quiet, bench, folder / "run")
            student = folder / "run" / "student.onnx"
            with float_file(network.graph, result.spec) as base:
                files = {"float": base, "student": student}
                if self.beside == "onnxruntime":
                    files["beside"] = by_onnxruntime(network, result.images, folder)
                if self.beside == "W8A8":
                    self.run(quiet.model_copy(update={"bits": "W8A8"}), bench, folder / "eight")
                    files["beside"] = folder / "eight" / "student.onnx"
                shape = result.spec.shape
                kernels = runtime.kernels(student, shape)
                times = runtime.measure(
                    files, shape, batches=_BATCHES, threads=(1,), seconds=self.time_limit,
                    progress=bench.progress,
                )  # fmt: skip
                found = self._in_float32(files, shape, bench) if _bfloat16(runtime) else {}
                sizes = {file: path.stat().st_size for file, path in files.items()}
            found |= {
                **_layers(kernels), **_speeds(times),
                "size": 100 * sizes["student"] / sizes["float"],
                **self._parity(runtime, student, result, network, config),
            }  # fmt: skip
            if "beside" in files:
                other = runtime.kernels(files["beside"])
                found["beside_integer"] = f"{other.integer} of {other.total}"
        return found | {
            "runtime_version": runtime.version,
            "integer_instructions": integer_instructions(),
            "exported": result.metrics["onnx"]["line"],
        }

    def _in_float32(
        self, files: dict[str, Path], shape: tuple[int, int, int], bench: Bench
    ) -> dict[str, Any]:
        times = OpenVINO(float32=True).measure(
            {name: files[name] for name in ("float", "student")}, shape, batches=_BATCHES,
            threads=(1,), seconds=self.time_limit, progress=bench.progress,
        )  # fmt: skip
        found = _speeds(times)
        return {name.replace("speed", "float32"): found[name] for name in found if "speed" in name}

    def _parity(
        self, runtime: Runtime, path: Path, result: Result, network: Network, config: RunConfig
    ) -> dict[str, Any]:
        predictors = {"expected": result.integer_model, "file": _predictor(runtime, path)}
        if runtime.name == "onnxruntime":
            predictors |= {"file": Onnx().run(path), "default": predictors["file"]}
        if network.test is not None:
            batches = network.batches(config.limit)
        else:
            batches = _noise(result.spec.shape, self.compared)
        found = compared(predictors, batches)
        told = {
            "identical": found["identical_file"], "difference": found["difference_file"],
            "identical_default": found.get("identical_default", found["identical_file"]),
            "test_images": found["images"],
        }  # fmt: skip
        if network.test is None:
            return told
        scores = {"top1": found["top1_file"], "student": found["top1_expected"]}
        return {**told, **scores, "teacher": NETWORKS[config.model].top1}


def compared(
    predictors: dict[str, Predict], batches: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, Any]:
    """How files answer beside what is expected of them.

    Args:
        predictors: ``expected`` and others, by name.
        batches: images and labels.

    Returns:
        ``top1_NAME`` of each in percent; of the others ``identical_NAME``, percent of images, and
        ``difference_NAME``, largest of two logits over the spread of those expected, in percent.
    """
    logits: dict[str, list[Tensor]] = {name: [] for name in predictors}
    labels: list[Tensor] = []
    with torch.inference_mode():
        for images, truth in batches:
            labels.append(truth)
            for name, predict in predictors.items():
                logits[name].append(predict(images))
    truth, whole = torch.cat(labels), {name: torch.cat(parts) for name, parts in logits.items()}
    expected = whole["expected"]
    spread = float(expected.max() - expected.min())
    found: dict[str, Any] = {"images": len(truth)}
    for name, own in whole.items():
        found[f"top1_{name}"] = _percent(own.argmax(1) == truth)
        if name != "expected":
            found[f"identical_{name}"] = _percent(own.argmax(1) == expected.argmax(1))
            found[f"difference_{name}"] = 100 * float((own - expected).abs().max()) / spread
    return found


def _layers(kernels: Kernels) -> dict[str, Any]:
    """Integer layers, the time of the others, and why those are in float."""
    shares = [layer.share or 0.0 for layer in kernels.floats]
    named = by_reason([asdict(layer) for layer in kernels.floats])
    return {
        "integer": f"{kernels.integer} of {kernels.total}",
        "float_time": 100 * sum(shares),
        "products": f"{kernels.integer_products} of {kernels.products}",
        "why": "; ".join(f"{names}: {reason}" for reason, names in named) or None,
        "floats": {layer.name: layer.share for layer in kernels.floats},
    }


def _speeds(times: Iterable[Latency]) -> dict[str, Any]:
    """Ratios of the medians, and the medians."""
    by_batch: dict[int, dict[str, float]] = {}
    for one in times:
        by_batch.setdefault(one.batch, {})[one.file] = one.milliseconds
    found: dict[str, Any] = {"milliseconds": by_batch}
    for batch, median in by_batch.items():
        found[f"speed_{batch}"] = median["float"] / median["student"]
        if "beside" in median:
            found[f"beside_{batch}"] = median["beside"] / median["student"]
    return found


def _bfloat16(runtime: Runtime) -> bool:
    return isinstance(runtime, OpenVINO) and runtime.bfloat16


def _noise(shape: tuple[int, int, int], count: int) -> Iterator[tuple[Tensor, Tensor]]:
    images = torch.randn(count, *shape, generator=random_numbers(0, "compared"))
    for part in images.split(16):
        yield part, torch.zeros(len(part), dtype=torch.long)


def _predictor(runtime: Runtime, path: Path) -> Predict:
    call = runtime.opened(path, torch.get_num_threads())

    def predict(images: Tensor) -> Tensor:
        found: Any = call(images.float().contiguous().numpy())
        return torch.from_numpy(np.array(found[0]))

    return predict


def _percent(right: Tensor) -> float:
    return 100 * float(right.double().mean())
