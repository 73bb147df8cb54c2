"""The Model Compression Toolkit by itself: its images, its quantization, its file.

A script for an interpreter that has the toolkit and neither datafree nor this package: it reads a
request as JSON from the standard input and prints the seconds of its stages.
"""

from __future__ import annotations

import importlib.util
import json
import random
import sys
import time
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_TOGETHER = 32  # images it quantizes with at a time, as many as it makes at a time


def main() -> None:
    """Do what the request on the standard input says, and print what it took."""
    request = json.loads(sys.stdin.read())
    operators = operators_of_torchvision()
    # The exporter of ONNX that the toolkit calls, which was the default when it was written.
    torch.onnx.export = partial(torch.onnx.export, dynamo=False)
    mct = import_module("model_compression_toolkit")
    network = built(Path(request["networks"]), request["model"])
    stages = {"imports": time.process_time()}
    stages |= quantized(mct, network, request)
    del operators
    print(json.dumps(stages))  # noqa: T201 - how processes talk


def quantized(mct: Any, network: nn.Module, request: dict[str, Any]) -> dict[str, float]:
    """Quantize a network on images that the toolkit makes, all by its defaults, into a file.

    Args:
        mct: the toolkit.
        network: in float, taking images with three channels.
        request: `images`, their number; `pixels` of a side; `seed`; `onnx`, the file to write. Its
            activations are quantized and dequantized by ONNX's own operators, not by the toolkit's,
            so that any runtime can open it.

    Returns:
        Seconds of the processor by stage.
    """
    seed = int(request["seed"])
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - what the toolkit draws from
    random.seed(seed)
    moments = [time.process_time()]
    images: list[Tensor] = mct.data_generation.pytorch_data_generation_experimental(
        network, request["images"], request["pixels"],
        mct.data_generation.get_pytorch_data_generation_config(),
    )  # fmt: skip
    moments.append(time.process_time())

    def representative() -> Iterator[list[Any]]:
        for batch in torch.cat(images).split(_TOGETHER):
            yield [batch.detach().cpu().numpy()]

    student, _ = mct.ptq.pytorch_post_training_quantization(network, representative)
    moments.append(time.process_time())
    mct.exporter.pytorch_export_model(
        student, request["onnx"], representative,
        quantization_format=mct.exporter.QuantizationFormat.FAKELY_QUANT,
    )  # fmt: skip
    moments.append(time.process_time())
    spent = (late - early for early, late in pairwise(moments))
    return dict(zip(("images", "quantization", "export"), spent, strict=True))


def built(path: Path, name: str) -> nn.Module:
    """The network called `name` of a module of networks, such as `data/networks.py`."""
    spec = importlib.util.spec_from_file_location("_networks", path)
    assert spec is not None and spec.loader is not None  # noqa: S101 - the file is there
    module = importlib.util.module_from_spec(spec)
    sys.modules["_networks"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module.build(name)


def operators_of_torchvision() -> torch.library.Library | None:
    """What torchvision needs to be imported beside a torch that it was not built for."""
    try:
        import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


if __name__ == "__main__":
    main()
