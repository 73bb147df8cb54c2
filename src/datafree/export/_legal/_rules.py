"""Rules that several targets share, each one question about one pair or layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from onnx import TensorProto

from datafree.export._legal._pairs import (
    DEQUANTIZE,
    LAYERS,
    QUANTIZE,
    Pairs,
    called,
    type_name,
)


def zero_points(pairs: Pairs) -> Iterator[str]:
    """Zero points are 0."""
    for node in pairs.each(QUANTIZE, DEQUANTIZE):
        zero = pairs.numbers(node).zero_point
        if zero is None:
            yield f"{called(node)}: its zero point is no constant"
        elif zero.any():
            worst = int(zero.flat[int(np.abs(zero).argmax())])
            yield f"{called(node)}: zero point {worst}, it has to be 0"


def types(pairs: Pairs, allowed: Iterable[int], *, bias: bool) -> Iterator[str]:
    """Codes are of one of these types; with `bias`, an added constant may be int32."""
    allowed = tuple(allowed)
    for node in pairs.each(QUANTIZE, DEQUANTIZE):
        kind = pairs.numbers(node).kind
        added = kind == TensorProto.INT32 and node.op_type == DEQUANTIZE
        if kind not in allowed and not (added and bias):
            what = "an int32 bias has to be float" if added else (
                f"codes of {type_name(kind)}, they have to be"
                f" {' or '.join(type_name(one) for one in allowed)}"
            )  # fmt: skip
            yield f"{called(node)}: {what}"


def scales(pairs: Pairs, *, power_of_two: bool = False) -> Iterator[str]:
    """Scales are constants, positive and finite; one for an activation."""
    for node in pairs.each(QUANTIZE, DEQUANTIZE):
        scale = pairs.numbers(node).scale
        if scale is None:
            yield f"{called(node)}: its scale is no constant"
        elif not (np.isfinite(scale).all() and (scale > 0).all()):
            yield f"{called(node)}: a scale that is not positive and finite"
        elif scale.size > 1 and not pairs.is_weight(node):
            yield f"{called(node)}: {scale.size} scales for an activation, it has to be one"
        elif power_of_two and (np.frexp(scale)[0] != 0.5).any() and not _is_bias(pairs, node):
            yield f"{called(node)}: a scale that is no power of two"


def closed(pairs: Pairs) -> Iterator[str]:
    """Codes pass from QuantizeLinear to DequantizeLinear with the same numbers, nothing between."""
    for node in pairs.each(QUANTIZE):
        others = [r for r in pairs.readers(node.output[0]) if r.op_type != DEQUANTIZE]
        if others or node.output[0] in pairs.results:
            who = called(others[0]) if others else "the result"
            yield f"{called(node)}: {who} reads its codes, only DequantizeLinear may"
        for reader in pairs.readers(node.output[0]):
            if reader.op_type == DEQUANTIZE and list(reader.input[1:]) != list(node.input[1:]):
                mine, its = pairs.numbers(node), pairs.numbers(reader)
                if not np.array_equal(mine.scale, its.scale):  # pyright: ignore[reportArgumentType]
                    yield f"{called(node)}: its DequantizeLinear has another scale"


def weight_codes(pairs: Pairs, *, narrow: bool) -> Iterator[str]:
    """Codes of 8-bit weights have a mirror image, -128 has none."""
    for layer in pairs.each(*LAYERS):
        node = pairs.weight_of(layer)
        values = None if node is None else pairs.array(node.input[0])
        if narrow and values is not None and (values < -127).any():
            yield f"{called(layer)}: weight codes of -128, they have to be in [-127, 127]"


def weight_scales(pairs: Pairs, *, channels: bool) -> Iterator[str]:
    """Weights have one scale, or (with `channels`) one per output channel, on that axis."""
    for layer in pairs.each(*LAYERS):
        node = pairs.weight_of(layer)
        if node is None:
            continue
        numbers = pairs.numbers(node)
        count = 1 if numbers.scale is None else numbers.scale.size
        if count > 1 and not channels:
            yield f"{called(layer)}: a weight scale per channel, it has to be one per tensor"
        elif count > 1 and numbers.axis != _output_axis(pairs, layer, node):
            yield f"{called(layer)}: weight scales along axis {numbers.axis}, not its outputs"


def biases(pairs: Pairs) -> Iterator[str]:
    """Biases are float constants."""
    for layer in pairs.each(*LAYERS):
        if len(layer.input) > 2 and layer.input[2]:
            node = pairs.dequantized(layer.input[2])
            if node is not None and pairs.numbers(node).kind != TensorProto.INT32:
                yield f"{called(layer)}: its bias is quantized, it has to be float"


def inputs(pairs: Pairs) -> Iterator[str]:
    """A layer with an integer weight reads an input that is quantized too."""
    for layer in pairs.each(*LAYERS):
        # What is moved about between DequantizeLinear and the layer stays quantized.
        if pairs.weight_of(layer) is not None and not _moved_codes(pairs, layer.input[0]):
            yield f"{called(layer)}: its weight is quantized and its input is not"


def outputs(pairs: Pairs, kinds: Iterable[str]) -> Iterator[str]:
    """What these operators compute is quantized, perhaps behind one activation function."""
    for node in pairs.each(*kinds):
        if node.op_type in LAYERS and pairs.weight_of(node) is None:
            continue
        name = node.output[0]
        readers = pairs.readers(name)
        while len(readers) == 1 and _ends(pairs, readers[0]):
            name = readers[0].output[0]
            readers = pairs.readers(name)
        if not readers or any(reader.op_type != QUANTIZE for reader in readers):
            yield f"{called(node)}: what it computes is not quantized"


_ON_CODES = frozenset(
    ("MaxPool", "Pad", "Slice", "Split", "Squeeze", "Unsqueeze", "Gather", "DepthToSpace",
     "Concat", "Reshape", "Transpose", "Flatten", "Identity", "Resize")
)  # fmt: skip


def _ends(pairs: Pairs, node: onnx.NodeProto) -> bool:
    """Whether a kernel goes on with this: an activation function, or the bias of a product."""
    if node.op_type == "Add":
        return any(pairs.is_constant(name) for name in node.input)
    return node.op_type in ("Relu", "Clip")


def _moved_codes(pairs: Pairs, name: str) -> bool:
    node = pairs.maker(name)
    while node is not None and node.op_type in _ON_CODES:
        node = pairs.maker(node.input[0])
    return node is not None and node.op_type == DEQUANTIZE


def _is_bias(pairs: Pairs, node: onnx.NodeProto) -> bool:
    return pairs.numbers(node).kind == TensorProto.INT32


def _output_axis(pairs: Pairs, layer: onnx.NodeProto, weight: onnx.NodeProto) -> int:
    """The axis of the stored weight that counts outputs."""
    if layer.op_type in ("Conv", "ConvTranspose"):
        return 0 if layer.op_type == "Conv" else 1
    transposed = any(a.name == "transB" and a.i for a in layer.attribute)
    moved = layer.input[1] != weight.output[0]
    rank = 2 if (values := pairs.array(weight.input[0])) is None else values.ndim
    return 0 if transposed or moved else rank - 1
