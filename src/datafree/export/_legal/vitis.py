"""AMD's XINT8: symmetric int8 with power-of-two scales, one per tensor (Quark documentation)."""

from __future__ import annotations

import onnx
from onnx import TensorProto

from datafree.export._legal import _rules
from datafree.export._legal._pairs import Pairs


def vitis_problems(model: onnx.ModelProto) -> list[str]:
    """What the DPU cannot compute.

    Args:
        model: for Vitis or Ryzen AI. Scales of int32 biases are products of two powers of two.
    """
    pairs = Pairs(model)
    return [
        *_rules.types(pairs, (TensorProto.INT8,), bias=True),
        *_rules.zero_points(pairs),
        *_rules.scales(pairs, power_of_two=True),
        *_rules.closed(pairs),
        *_rules.weight_scales(pairs, channels=False),
        *_rules.inputs(pairs),
    ]
