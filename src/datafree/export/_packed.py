"""Weights in files that keep them in a runtime's own order: found again by their numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from datafree.export._differs import Differs
from datafree.export._readback import bare_codes, quantized_layers
from datafree.graph.settle import bias_scale, read_quantizers
from datafree.quant.modules import ActivationQuantizer, QuantizedLayer

_FLOAT_BITS = 2.0**-22  # of a bias: what float32 leaves of a code that was computed in it


@dataclass(frozen=True)
class Held:
    """A layer's numbers in a file.

    Attributes:
        codes: of the weight, counted from the zero points, in the file's order.
        scales: of the weight.
        bias: real numbers; None where the layer has none.
        step: of the bias, of the shape of `bias` or one for all.
    """

    codes: Tensor
    scales: Tensor
    bias: Tensor | None
    step: Tensor


def orders(layer: QuantizedLayer) -> list[Tensor]:
    """The bare codes of `layer` in the orders that runtimes keep them in, flat.

    Output channels first and input channels last, or first as in torch; output channels last for a
    depthwise convolution.
    """
    codes = bare_codes(layer)
    found = [codes.movedim(1, -1).flatten(), codes.flatten()]
    return [*found, codes.movedim(0, -1).flatten()] if codes.shape[1] == 1 else found


def check_layers(student: fx.GraphModule, held: Sequence[Held]) -> None:
    """Compare the layers of `student` with those that a file holds, in whatever order.

    Raises:
        Differs: a layer of the student is not among them.
    """
    for path, layer in quantized_layers(student).items():
        scales = layer.weight_quantizer.scale.flatten().cpu()
        wanted = orders(layer)
        alike = [one for one in held if one.codes.numel() == wanted[0].numel()]
        exact = [one for one in alike if any(torch.equal(one.codes.flatten(), w) for w in wanted)]
        if not exact:
            raise Differs(f"the codes of the weight of {path}", _nearest(wanted, alike))
        graded = [one for one in exact if torch.equal(one.scales.flatten(), scales)]
        if not graded:
            raise Differs(f"the scales of the weight of {path}", "the file has others")
        if not any(_same_bias(layer, one) for one in graded):
            raise Differs(f"the codes of the bias of {path}", "the file has others")


def check_bytes(student: fx.GraphModule, content: bytes) -> None:
    """Look for the codes, scales and biases of all layers of `student` in the bytes of a file.

    Raises:
        Differs: they are not there as they are.
    """
    read = read_quantizers(student)
    for path, layer in quantized_layers(student).items():
        codes = [w.to(torch.int8).numpy().tobytes() for w in orders(layer)]
        if not any(one in content for one in codes):
            raise Differs(f"the codes of the weight of {path}", "they are not in the file")
        scales = layer.weight_quantizer.scale.flatten().cpu().numpy().astype(np.float32)
        if scales.tobytes() not in content:
            raise Differs(f"the scales of the weight of {path}", "they are not in the file")
        if any(one in content for one in biases(layer, read[path])):
            continue
        assert layer.bias is not None  # noqa: S101 - one that has none is in every file
        bias = layer.bias.detach().cpu()
        if not any(_rounded_in(content, bias, step) for step in _steps(layer, read[path])):
            raise Differs(f"the bias of {path}", "it is not in the file")


def biases(layer: QuantizedLayer, read: Iterable[ActivationQuantizer | None]) -> list[bytes]:
    """The bias of `layer` as a file may hold it: float32, or int32 codes of the sums; one of them.

    Args:
        layer: quantized.
        read: quantizers of what it reads.
    """
    if layer.bias is None:
        return [b""]
    bias = layer.bias.detach().cpu()
    steps = _steps(layer, read)
    codes = [torch.round(bias.double() / step.double()).to(torch.int32) for step in steps]
    codes += [torch.round(bias / step).to(torch.int32) for step in steps]
    return [tensor.numpy().tobytes() for tensor in (bias.float(), *codes)]


def _steps(layer: QuantizedLayer, read: Iterable[ActivationQuantizer | None]) -> list[Tensor]:
    """The steps of the sums, for every scale that `layer` reads."""
    return [bias_scale(layer, quantizer.scale).cpu() for quantizer in read if quantizer]


def _rounded_in(content: bytes, bias: Tensor, step: Tensor) -> bool:
    """Whether int32 codes of `bias` are in `content`, rounded to either side where it is a tie.

    A converter divides in float32, or multiplies with the inverse, which moves ties.
    """
    wanted = (bias.double() / step.double()).numpy()
    allowed = 0.5 + np.abs(wanted) * _FLOAT_BITS
    numbers = np.frombuffer(content, np.int32, len(content) // 4)
    found = np.flatnonzero(np.abs(numbers - wanted[0]) <= allowed[0])
    found = found[found <= len(numbers) - len(wanted)]
    windows = numbers[found[:, None] + np.arange(len(wanted))]
    return bool((np.abs(windows - wanted) <= allowed).all(1).any())


def _same_bias(layer: QuantizedLayer, held: Held) -> bool:
    if layer.bias is None or held.bias is None:
        return layer.bias is None or not bool(layer.bias.detach().any())
    own = layer.bias.detach().cpu().double()
    if own.numel() != held.bias.numel():
        return False
    allowed = torch.maximum(held.step.double() / 2, own.abs() * _FLOAT_BITS)
    return bool(((held.bias.double().flatten() - own).abs() <= allowed).all())


def _nearest(wanted: Sequence[Tensor], alike: Sequence[Held]) -> str:
    """In how many codes the most similar layer of the file is another."""
    counts = [int((one.codes.flatten() != w).sum()) for one in alike for w in wanted]
    return f"{min(counts)} of {wanted[0].numel()} codes" if counts else "none has its size"
