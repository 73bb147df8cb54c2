"""Sets of images in the quantizers of other tools, each as it quantizes by default."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from benchmarks.images import stem_of
from benchmarks.kinds.base import Bench, Kind
from benchmarks.networks import Network
from benchmarks.tools import by_onnxruntime, prepared
from datafree import adapters
from datafree.adapters.excite import Excite, full_range
from datafree.config import RunConfig
from datafree.evaluate import top1
from datafree.graph.capture import to_device
from datafree.graph.taps import last_linear
from datafree.images import SyntheticSet, batch_size
from datafree.models.hubs import operators_of_torchvision
from datafree.synthesis.base import Stored

Predict = Callable[[Tensor], Tensor]
_INPUT = "images"


class ExportedImages(Kind):
    """Top-1 of the network as `tool` quantizes it on the images, and how far they reach.

    `logits` and `pooled` are the ranges, largest minus smallest value, of logits and of what the
    classifier reads, over those of as many real images of another seed.
    """

    tool: Literal["onnxruntime", "nncf", "mct"] = "onnxruntime"
    """Whose quantizer."""
    excite: bool = False
    """Excite the images as `datafree synthesize` does."""
    full_range: bool = False
    """Only its last step: let black and white occur in every channel."""
    bias_correction: bool = True
    """Let NNCF correct biases, as it does by default."""
    reference_seed: int = 1_000
    """By which the real images are drawn that ranges are compared with."""

    def measure(self, config: RunConfig, bench: Bench) -> dict[str, Any]:
        """See the base class."""
        network = bench.network(config)
        images = self._images(config, bench)
        real = network.real_images(len(images), self.reference_seed)
        reach = zip(_reach(network, images), _reach(network, real), strict=True)
        with TemporaryDirectory() as folder:
            predict = self._quantized(network, images, Path(folder))
            batches = network.batches(config.limit)
            found = top1({"quantized": predict}, batches)
        logits, pooled = (ours / theirs for ours, theirs in reach)
        return {
            "top1": found.top1["quantized"], "logits": logits, "pooled": pooled,
            "test_images": found.images, "image_digest": images.digest(),
            "tool_version": version(_PACKAGES[self.tool]),
        }  # fmt: skip

    def _quantized(self, network: Network, images: SyntheticSet, folder: Path) -> Predict:
        if self.tool == "nncf":
            return _nncf(network, images, folder, bias_correction=self.bias_correction)
        return {"onnxruntime": _onnxruntime, "mct": _mct}[self.tool](network, images, folder)

    def _images(self, config: RunConfig, bench: Bench) -> SyntheticSet:
        if not self.excite:
            images = self.images(config, bench)
            return full_range(images) if self.full_range else images
        step, stem = Excite(), stem_of(config, bench.network(config))
        told = json.dumps([step.model_dump(mode="json"), stem, config.seed])
        digest = hashlib.sha256(told.encode()).hexdigest()[:12]
        path = bench.place.made / f"{config.model}_excited_{config.images}_{digest}.safetensors"
        if not path.exists():
            images = self.images(config, bench)
            unfinished = path.with_suffix(".unfinished")
            step.apply(
                to_device(bench.network(config).graph, torch.device(bench.device)), images,
                seed=config.seed, progress=bench.progress, checkpoint=unfinished,
            ).save(path)  # fmt: skip
            Stored.clear(unfinished)
        return SyntheticSet.load(path)


def _reach(network: Network, images: SyntheticSet) -> tuple[float, float]:
    """Ranges of logits and of what the classifier reads."""
    graph = network.graph
    layer = last_linear(graph)
    assert layer is not None  # noqa: S101 - all networks of the table are classifiers
    seen: list[Tensor] = []
    handle = graph.get_submodule(layer).register_forward_pre_hook(
        lambda _module, inputs: seen.append(inputs[0])
    )
    with torch.no_grad():
        logits = torch.cat([graph(part) for part in images.batches(batch_size(images.spec))])
    handle.remove()
    low, high = torch.aminmax(torch.cat(seen))
    return float(logits.max() - logits.min()), float(high - low)


def _onnxruntime(network: Network, images: SyntheticSet, folder: Path) -> Predict:
    """Static quantization to QDQ as by default, but for weights per channel."""
    return _in_onnxruntime(by_onnxruntime(network, images, folder))


def _nncf(
    network: Network, images: SyntheticSet, folder: Path, *, bias_correction: bool
) -> Predict:
    """`nncf.quantize` of the ONNX file on all images, as by default or without its correction."""
    nncf: Any = import_module("nncf")
    source, written = prepared(network, folder), folder / "quantized.onnx"
    dataset = adapters.for_nncf(images, input_name=_INPUT)
    quantized = nncf.quantize(
        onnx.load(str(source)), dataset, subset_size=len(images),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            disable_bias_correction=not bias_correction
        ),
    )  # fmt: skip
    onnx.save(quantized, str(written))
    return _in_onnxruntime(written)


def _in_onnxruntime(path: Path) -> Predict:
    """In exact mode: int8 weights saturate on processors without VNNI otherwise."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])

    def predict(batch: Tensor) -> Tensor:
        found: Any = session.run(None, {_INPUT: batch.contiguous().numpy()})
        return torch.from_numpy(found[0])

    return predict


def _mct(network: Network, images: SyntheticSet, folder: Path) -> Predict:
    """`pytorch_post_training_quantization` of the Model Compression Toolkit."""
    operators_of_torchvision()
    mct: Any = import_module("model_compression_toolkit")
    del folder
    data = adapters.for_mct(images)
    quantized, _ = mct.ptq.pytorch_post_training_quantization(network.teacher.model, data)
    return _evaluated(quantized)


def _evaluated(module: nn.Module) -> Predict:
    module.eval()

    def predict(batch: Tensor) -> Tensor:
        with torch.no_grad():
            return module(batch)

    return predict


_PACKAGES = {
    "onnxruntime": "onnxruntime", "nncf": "nncf", "mct": "model-compression-toolkit"
}  # fmt: skip
