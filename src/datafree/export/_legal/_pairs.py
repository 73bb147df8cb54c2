"""An ONNX graph as its rules see it: who reads what, and what every Q and DQ has for numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
LAYERS = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))
_MOVES = frozenset(("Cast", "Reshape", "Transpose", "Flatten", "Identity"))


@dataclass(frozen=True)
class Numbers:
    """What a QuantizeLinear or DequantizeLinear reads.

    Attributes:
        scale: values, or None where they are not constant.
        zero_point: likewise; zeros where it is left out.
        kind: ONNX type of the codes; 0 where it cannot be told.
        axis: of the scales.
    """

    scale: NDArray[np.float64] | None
    zero_point: NDArray[np.int64] | None
    kind: int
    axis: int


class Pairs:
    """Look-ups in one graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Index `model`, which is not changed."""
        graph = model.graph
        self.nodes = list(graph.node)
        self.results = frozenset(value.name for value in graph.output)
        self.constants: dict[str, TensorProto] = {t.name: t for t in graph.initializer}
        self._made: dict[str, onnx.NodeProto] = {}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t
            for name in node.output:
                self._made[name] = node
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def each(self, *kinds: str) -> Iterator[onnx.NodeProto]:
        """Nodes of these operators, in order."""
        return (node for node in self.nodes if node.op_type in kinds)

    def maker(self, name: str) -> onnx.NodeProto | None:
        """The node that computes a tensor; None for inputs and constants."""
        return self._made.get(name)

    def readers(self, name: str) -> list[onnx.NodeProto]:
        """The nodes that read a tensor."""
        return self._readers.get(name, [])

    def array(self, name: str) -> NDArray[np.float64] | None:
        """Values of a constant, whatever its type; None where it is none."""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor).astype(np.float64)

    def is_constant(self, name: str) -> bool:
        """Whether a tensor is a constant, perhaps cast or reshaped."""
        node = self.maker(name)
        if name in self.constants:
            return True
        return node is not None and node.op_type in _MOVES and self.is_constant(node.input[0])

    def numbers(self, node: onnx.NodeProto) -> Numbers:
        """Scale and zero point of a QuantizeLinear or DequantizeLinear."""
        options = {a.name: a.i for a in node.attribute}
        scale, zero, kind = self.array(node.input[1]), None, 0
        if len(node.input) > 2 and node.input[2]:
            values = self.array(node.input[2])
            if values is not None:
                zero, kind = values.astype(np.int64), self.constants[node.input[2]].data_type
        else:
            zero = np.zeros((), np.int64)
            kind = options.get("output_dtype", 0) or (
                TensorProto.UINT8 if node.op_type == QUANTIZE else self._kind(node.input[0])
            )
        return Numbers(scale, zero, kind, options.get("axis", 1))

    def _kind(self, name: str) -> int:
        """Type of the codes that a DequantizeLinear without zero point reads."""
        if name in self.constants:
            return self.constants[name].data_type
        node = self.maker(name)
        if node is None:
            return 0
        if node.op_type == "Cast":
            return next(a.i for a in node.attribute if a.name == "to")
        return self.numbers(node).kind if node.op_type == QUANTIZE else 0

    def dequantized(self, name: str) -> onnx.NodeProto | None:
        """The DequantizeLinear that gives a tensor, perhaps transposed or reshaped."""
        node = self.maker(name)
        while node is not None and node.op_type in _MOVES:
            node = self.maker(node.input[0])
        return node if node is not None and node.op_type == DEQUANTIZE else None

    def is_weight(self, node: onnx.NodeProto) -> bool:
        """Whether a Q or DQ works on a constant: on codes, or on float values that Q rounds."""
        name = node.input[0]
        before = self.maker(name)
        if node.op_type == DEQUANTIZE and before is not None and before.op_type == QUANTIZE:
            name = before.input[0]
        return self.is_constant(name)

    def weight_of(self, layer: onnx.NodeProto) -> onnx.NodeProto | None:
        """The DequantizeLinear of a layer's constant weight; None where it is in float."""
        found = self.dequantized(layer.input[1])
        return found if found is not None and self.is_weight(found) else None


def called(node: onnx.NodeProto) -> str:
    """What a node is called in messages."""
    return node.name or f"{node.op_type} of {node.output[0]}"


def type_name(kind: int) -> str:
    """An ONNX type in small letters."""
    return TensorProto.DataType.Name(kind).lower() if kind else "an unknown type"
