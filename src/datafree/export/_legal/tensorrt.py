"""TensorRT's explicit quantization (its documentation, "Explicit Quantization")."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto

from datafree.export._legal import _rules
from datafree.export._legal._pairs import DEQUANTIZE, QUANTIZE, Pairs, called

_PER_CHANNEL = 13  # opset


def tensorrt_problems(model: onnx.ModelProto) -> list[str]:
    """What TensorRT's parser refuses, or builds otherwise than it is written.

    Args:
        model: for TensorRT.
    """
    pairs = Pairs(model)
    return [
        *_opset(model),
        *_rules.types(pairs, (TensorProto.INT8,), bias=False),
        *_rules.zero_points(pairs),
        *_rules.scales(pairs),
        *_rules.closed(pairs),
        *_rules.weight_codes(pairs, narrow=True),
        *_rules.weight_scales(pairs, channels=True),
        *_rules.biases(pairs),
        *_rules.inputs(pairs),
        *_additions(pairs),
    ]


def _opset(model: onnx.ModelProto) -> Iterator[str]:
    version = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if version < _PER_CHANNEL:
        yield f"opset {version}: scales per channel need {_PER_CHANNEL} or later"


def _additions(pairs: Pairs) -> Iterator[str]:
    """An addition is computed inside the convolution before it, from a quantized shortcut.

    A pair between the two separates them. Of two convolutions one takes the addition in, and what
    the other computes is quantized.
    """
    for node in pairs.each("Add"):
        if any(pairs.is_constant(name) for name in node.input):
            continue
        bare = [name for name in node.input if _sole_layer(pairs, name)]
        behind = [name for name in node.input if _quantized_layer(pairs, name)]
        if not bare and behind:
            yield f"{called(node)}: Q/DQ on its convolution branch, which separates the two"
        if len(bare) == 1:
            (other,) = [name for name in node.input if name not in bare] or bare
            if pairs.dequantized(other) is None:
                yield f"{called(node)}: its shortcut {other} is not quantized"
        elif len(bare) == len(node.input):
            yield f"{called(node)}: neither of its branches is quantized, one has to be"


def _sole_layer(pairs: Pairs, name: str) -> bool:
    """Whether an integer convolution computes this for one reader."""
    node = pairs.maker(name)
    return (
        node is not None and node.op_type == "Conv"
        and pairs.weight_of(node) is not None and len(pairs.readers(name)) == 1
    )  # fmt: skip


def _quantized_layer(pairs: Pairs, name: str) -> bool:
    """Whether this is the DequantizeLinear behind a convolution that nothing else reads."""
    node = pairs.maker(name)
    if node is None or node.op_type != DEQUANTIZE or len(pairs.readers(name)) != 1:
        return False
    codes = pairs.maker(node.input[0])
    return (
        codes is not None and codes.op_type == QUANTIZE
        and len(pairs.readers(codes.output[0])) == 1 and _sole_layer(pairs, codes.input[0])
    )  # fmt: skip
