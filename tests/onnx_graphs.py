"""Small Q/DQ graphs, node by node, for tests of what runtimes make of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

X_SCALE, W_SCALE = 0.05, 0.01


@dataclass
class Draft:
    """A graph under construction; every method returns the name of the tensor it made."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    def constant(self, name: str, value: NDArray[Any] | np.generic) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """A node named as its output, unless `attributes` name it."""
        name = attributes.pop("name", output)
        self.nodes.append(helper.make_node(op, inputs, [output], name, **attributes))
        return output

    def quantized(
        self, source: str, name: str, *, scale: float = X_SCALE, zero: int = 0, kind: Any = np.uint8
    ) -> str:
        """QuantizeLinear and DequantizeLinear."""
        given = [
            self.constant(f"{name}.scale", np.float32(scale)),
            self.constant(f"{name}.zero", kind(zero)),
        ]
        self.node("QuantizeLinear", [source, *given], f"{name}.codes")
        return self.node("DequantizeLinear", [f"{name}.codes", *given], name)

    def weight(
        self,
        name: str,
        shape: tuple[int, ...],
        *,
        axis: int = 0,
        kind: Any = np.int8,
        zero: int = 0,
    ) -> str:
        """Codes with a scale per channel along `axis`, and their DequantizeLinear."""
        codes = np.random.default_rng(0).integers(-60, 60, shape) + (128 if kind is np.uint8 else 0)
        given = [
            self.constant(f"{name}_quantized", codes.astype(kind)),
            self.constant(f"{name}_scale", np.full(shape[axis], W_SCALE, np.float32)),
            self.constant(f"{name}_zero", np.full(shape[axis], zero, kind)),
        ]
        return self.node("DequantizeLinear", given, f"{name}.float", axis=axis)

    def bias(self, name: str, channels: int, *, factor: float = 1.0, kind: Any = np.int32) -> str:
        """Codes at `factor` times the scale of input times weights."""
        scale = np.full(channels, np.float32(X_SCALE) * np.float32(W_SCALE) * factor, np.float32)
        given = [
            self.constant(f"{name}_quantized", np.full(channels, 3, kind)),
            self.constant(f"{name}_scale", scale),
        ]
        return self.node("DequantizeLinear", given, f"{name}.float", axis=0)

    def model(
        self, output: str, *, shape: tuple[int | str, ...] = ("n", 8, 12, 12)
    ) -> onnx.ModelProto:
        """The graph from `x` to `output`, and to whatever is listed in `outputs`."""
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
        names = (output, *self.outputs)
        outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names]
        graph = helper.make_graph(self.nodes, "draft", inputs, outputs, self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def conv(draft: Draft, source: str = "", **weight: Any) -> str:
    """A convolution of 8 channels named `net.conv`, on the quantized input unless told."""
    source = source or draft.quantized("x", "xq")
    given = draft.weight("net.conv.weight", (8, 8, 3, 3), **weight)
    return draft.node("Conv", [source, given], "y", name="net.conv")


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    """`model` as a file."""
    path = folder / "draft.onnx"
    onnx.save(model, path)
    return path
