"""Other toolkits' quantizers, on the networks and images of the benchmarks."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from benchmarks.networks import Network
from datafree import adapters
from datafree.images import SyntheticSet


def by_onnxruntime(network: Network, images: SyntheticSet, folder: Path) -> Path:
    """The file that onnxruntime's static quantization makes, with weights per channel."""
    from onnxruntime.quantization import quantize_static

    source, written = prepared(network, folder), folder / "quantized.onnx"
    reader = adapters.for_onnxruntime(images, source)
    quantize_static(str(source), str(written), reader, per_channel=True)
    return written


def prepared(network: Network, folder: Path) -> Path:
    """The float network as an ONNX file, prepared as onnxruntime's quantizer asks for."""
    from onnxruntime.quantization.preprocess import quant_pre_process

    source, ready = folder / "float.onnx", folder / "ready.onnx"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)  # torch's word to itself
        torch.onnx.export(
            network.teacher.model, (torch.zeros(2, *network.teacher.spec.shape),), source,
            dynamo=True, input_names=["images"],
            dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False, verbose=False,
        )  # fmt: skip
    quant_pre_process(source, ready, skip_symbolic_shape=True)
    return ready
