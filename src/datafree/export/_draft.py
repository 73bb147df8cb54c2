"""Nodes and initializers of an ONNX graph in the making, and the pairs that stand on every edge."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from datafree.export._storage import integers, stored_activation
from datafree.quant.modules import Quantizer

_PAIR = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Grid:
    """What a pair of QuantizeLinear and DequantizeLinear reads: initializers by name.

    `quantizer` is the path of the student's.
    """

    quantizer: str
    scale: str
    zero_point: str
    limits: tuple[str, str] | None


@dataclass
class Draft:
    """What was written so far."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, TensorProto] = field(default_factory=dict)
    _paired: set[str] = field(default_factory=set[str])

    def grid(self, path: str, quantizer: Quantizer, *, signed: bool) -> Grid:
        """The initializers of a quantizer's grid; `signed` codes are int8, others uint8."""
        moved, kind = stored_activation(quantizer, signed=signed)
        grid = quantizer.grid
        limits = None
        if grid.bits < 8:
            ends = [
                self.add(integers(f"{path}.{part}", torch.tensor(float(code + moved)), kind))
                for part, code in (("min", grid.qmin), ("max", grid.qmax))
            ]
            limits = ends[0], ends[1]
        zero_point = quantizer.zero_point.cpu() + moved
        return Grid(
            path,
            self.number(quantizer.scale.cpu(), f"{path}.scale"),
            self.add(integers(f"{path}.zero_point", zero_point, kind)),
            limits,
        )

    def pair(self, path: str, grid: Grid, source: str, output: str) -> None:
        """The nodes that put `source` on `grid` and give `output`."""
        codes = f"{output}_quantized"
        parameters = [grid.scale, grid.zero_point]
        path = output if path in self._paired else path  # a quantizer that several tensors share
        self._paired.add(path)
        quantize = [source, *parameters], [codes], f"{path}/{_PAIR[0]}"
        self.nodes.append(helper.make_node(_PAIR[0], *quantize))
        if grid.limits is not None:
            clipped = f"{output}_clipped"
            clip = [codes, *grid.limits], [clipped], f"{path}/Clip"
            self.nodes.append(helper.make_node("Clip", *clip))
            codes = clipped
        dequantize = [codes, *parameters], [output], f"{path}/{_PAIR[1]}"
        self.nodes.append(helper.make_node(_PAIR[1], *dequantize))

    def number(self, values: Tensor, name: str) -> str:
        """An initializer of floats; its name."""
        return self.add(numpy_helper.from_array(values.numpy(), name))

    def add(self, tensor: TensorProto) -> str:
        """An initializer; its name."""
        self.initializers[tensor.name] = tensor
        return tensor.name
