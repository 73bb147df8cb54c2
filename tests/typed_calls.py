"""Calls as people write them, for the type checker alone: `make types` reads this, nothing runs it.

The functions of the package get their types from the fields of configurations, so a field that
is told too narrowly refuses a call which works.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

import datafree


def quantized(model: nn.Module, images: Tensor) -> list[datafree.Result]:
    return [
        datafree.quantize(model, input_shape=(3, 32, 32), bits="W4A4", method="dsg", output="run"),
        datafree.quantize(model, output=Path("run"), data=Path("test.npz"), images=images),
        datafree.quantize("net.pt2", weights_file="weights.safetensors", data="test.npz"),
        datafree.quantize("net.onnx", layer_bits={"head.*": 8}, keep_float=["stem"], max_drop=1.0),
        datafree.quantize("net.onnx", keep_float="stem", images="images.safetensors"),
        datafree.quantize("digits_resnet8", recipe="trained", max_time="10m", progress=True),
        datafree.quantize(model, training="dfqf", generator="generator.safetensors"),
    ]


def distilled(model: nn.Module, student: nn.Module) -> datafree.Result:
    return datafree.distill(
        model, student=student, output="run", student_weights_file="start.pt", bits="W4A4"
    )


def images(model: nn.Module) -> datafree.SyntheticSet:
    return datafree.synthesize(model, method="zeroq", images=64, weights_file="weights.pt")
