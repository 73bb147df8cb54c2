"""How codes are stored: the ONNX integer type of a weight or an activation, and their bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor

from datafree.quant.modules import QuantizedLayer, Quantizer

WeightType = Literal["auto", "int8", "uint8"]

_RANGES: dict[int, tuple[int, int]] = {
    TensorProto.INT4: (-8, 7),
    TensorProto.UINT4: (0, 15),
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT8: (0, 255),
}
WIDENED: dict[int, int] = {TensorProto.INT4: TensorProto.INT8, TensorProto.UINT4: TensorProto.UINT8}
"""The type that codes of a type are cast to when a session loads: kernels have 8 bits."""


@dataclass(frozen=True)
class Stored:
    """Codes of a weight as they are stored.

    Attributes:
        codes: of the weight's shape, whole numbers.
        zero_point: of the shape of its scale.
        kind: ONNX type that holds both.
    """

    codes: Tensor
    zero_point: Tensor
    kind: int


def stored_weight(layer: QuantizedLayer, weight_type: WeightType) -> Stored:
    """The codes of a layer's weight.

    Zero points are taken off the codes where these then fit a signed type of 4 or 8 bits, as codes
    of symmetric grids do: only such weights are fast everywhere. Otherwise codes keep their zero
    point in the unsigned type. Neither changes a value.

    Args:
        layer: its weight quantizer has a range.
        weight_type: `int8` or `uint8` moves 8-bit codes and zero points by 128 to have that type.
    """
    quantizer = layer.weight_quantizer
    codes, zero_point = quantizer.codes(layer.weight.detach()).cpu(), quantizer.zero_point.cpu()
    bare = codes - zero_point
    signed = _smallest(bare, (TensorProto.INT4, TensorProto.INT8))
    if weight_type != "uint8" and signed is not None and _worthwhile(quantizer, signed):
        return Stored(bare, zero_point * 0, signed)
    grid = quantizer.grid
    narrow, sign = grid.bits <= 4, weight_type == "int8"
    moved = -grid.qmin - (2 ** (grid.bits - 1) if sign else 0)
    kinds = (
        (TensorProto.UINT4, TensorProto.INT4) if narrow else (TensorProto.UINT8, TensorProto.INT8)
    )
    return Stored(codes + moved, zero_point + moved, kinds[sign])


def stored_activation(quantizer: Quantizer, *, signed: bool) -> tuple[int, int]:
    """What to add to all codes of an activation, and the ONNX type that then holds them.

    Args:
        quantizer: of the activation.
        signed: the target wants int8; others are fast on uint8 around 128 and know no other.
    """
    grid = quantizer.grid
    if signed:
        return (0 if grid.qmin < 0 else -128), TensorProto.INT8
    return (128 if grid.qmin < 0 else 0), TensorProto.UINT8


def integers(name: str, values: Tensor, kind: int) -> TensorProto:
    """An integer initializer; 4-bit codes are packed two to a byte, the first in the low half."""
    array: NDArray[np.float32] = values.numpy()
    raw = np.ascontiguousarray(array).astype(np.int64).astype(np.uint8).reshape(-1)
    if kind in (TensorProto.UINT4, TensorProto.INT4):
        padded = np.append(raw, np.zeros(raw.size % 2, np.uint8)) & 0x0F
        raw = padded[0::2] | (padded[1::2] << 4)
    return helper.make_tensor(name, kind, array.shape, raw.tobytes(), raw=True)


def _worthwhile(quantizer: Quantizer, kind: int) -> bool:
    """Not where a code of 4 bits would take 8."""
    return kind == TensorProto.INT4 or quantizer.grid.bits > 4


def _smallest(codes: Tensor, kinds: tuple[int, ...]) -> int | None:
    """The first type that holds all codes."""
    low, high = float(codes.min()), float(codes.max())
    return next((k for k in kinds if _RANGES[k][0] <= low and high <= _RANGES[k][1]), None)
