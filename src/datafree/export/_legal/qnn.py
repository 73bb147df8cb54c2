"""Qualcomm HTP: every tensor around a layer is quantized (onnxruntime's QNN configuration)."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto

from datafree.export._legal import _rules
from datafree.export._legal._pairs import LAYERS, QUANTIZE, Pairs, called

_SMALLEST_RANGE = 1e-4
_CODES: dict[int, int] = {TensorProto.UINT8: 255, TensorProto.UINT16: 65535}


def qnn_problems(model: onnx.ModelProto) -> list[str]:
    """What the HTP leaves to another processor.

    Args:
        model: for QNN.
    """
    pairs = Pairs(model)
    kinds = (TensorProto.UINT8, TensorProto.UINT16, TensorProto.INT8)
    return [
        *_rules.types(pairs, kinds, bias=True),
        *_activations(pairs),
        *_rules.scales(pairs),
        *_rules.closed(pairs),
        *_rules.weight_scales(pairs, channels=True),
        *_rules.inputs(pairs),
        *_rules.outputs(pairs, LAYERS - {"ConvTranspose"}),
    ]


def _activations(pairs: Pairs) -> Iterator[str]:
    """Activations are unsigned, and their range is not too small."""
    for node in pairs.each(QUANTIZE):
        if pairs.is_weight(node):
            continue
        numbers = pairs.numbers(node)
        if numbers.kind not in _CODES:
            yield f"{called(node)}: an activation has to be uint8 or uint16"
        elif numbers.scale is not None and (numbers.scale * _CODES[numbers.kind]).min() < (
            _SMALLEST_RANGE
        ):
            yield f"{called(node)}: a range below {_SMALLEST_RANGE:g}"
