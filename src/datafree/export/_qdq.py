"""From a student to ONNX nodes: integer weights, QuantizeLinear and DequantizeLinear.

The student is traced with a marker node in place of every quantizer; `rewrite` turns the markers
into standard ONNX. torch's own exporter knows full 8-bit ranges only.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn

from datafree.graph.widths import activation_widths
from datafree.quant.modules import QUANTIZED, ActivationQuantizer, QuantizedLayer, Quantizer

WeightType = Literal["auto", "int8", "uint8"]

DOMAIN = "datafree"
_WEIGHT, _ACTIVATION = "Weight", "Activation"
_TYPES = {
    (4, False): TensorProto.UINT4,
    (4, True): TensorProto.INT4,
    (8, False): TensorProto.UINT8,
    (8, True): TensorProto.INT8,
}


class _Marker(nn.Module):
    """Traces as one ONNX node ``datafree::kind`` that names a module of the student."""

    def __init__(self, kind: str, path: str) -> None:
        super().__init__()
        self.kind, self.path = kind, path

    def forward(self, values: Tensor) -> Tensor:
        """A stand-in of the type and shape of `values`; only its trace matters."""
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{self.kind}",
            (values,),
            {"path": self.path},
            dtype=values.dtype,
            shape=values.shape,
            version=1,
        )


def with_markers(student: fx.GraphModule) -> fx.GraphModule:
    """A copy of `student` that traces to marker nodes instead of quantizers."""
    marked = copy.deepcopy(student)
    for name, module in list(marked.named_modules()):
        if isinstance(module, QUANTIZED):
            marker = _Marker(_WEIGHT, name) if module.weight_quantizer.enabled else nn.Identity()
            module.weight_quantizer = marker  # pyright: ignore - it is only traced
    for name, module in list(marked.named_modules(remove_duplicate=False)):
        if isinstance(module, ActivationQuantizer):
            marker = _Marker(_ACTIVATION, name) if module.enabled else nn.Identity()
            marked.set_submodule(name, marker)
    return marked


def rewrite(model: onnx.ModelProto, student: fx.GraphModule, weight_type: WeightType) -> int:
    """Replace all markers of `model` in place.

    Args:
        model: traced from `with_markers(student)`.
        student: where scales, zero points and codes come from.
        weight_type: signed or unsigned integers, or `auto` as the weight's grid has them.

    Returns:
        Bytes of the weights of quantized layers: codes, scales and zero points.
    """
    rewriter = _Rewriter(student, weight_type, _narrow_layers(student))
    for node in model.graph.node:
        rewriter.visit(node)
    used = {name for node in rewriter.nodes for name in node.input} | {
        o.name for o in model.graph.output
    }
    initializers = [*model.graph.initializer, *rewriter.initializers.values()]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(rewriter.nodes)
    model.graph.initializer.extend(tensor for tensor in initializers if tensor.name in used)
    for opset in [opset for opset in model.opset_import if opset.domain == DOMAIN]:
        model.opset_import.remove(opset)
    return rewriter.weight_bytes


def can_saturate(student: fx.GraphModule, weight_type: WeightType) -> bool:
    """Whether integer kernels would multiply 8-bit activations with int8 weights beyond 7 bits."""
    for path, widths in _widths(student).items():
        if widths != {8}:
            continue
        layer = student.get_submodule(path)
        if isinstance(layer, QUANTIZED):
            shift, kind = _storage(layer.weight_quantizer, weight_type)
            values = layer.weight_quantizer.codes(layer.weight.detach()) + shift
            if kind == TensorProto.INT8 and bool(((values < -64) | (values > 63)).any()):
                return True
    return False


def _narrow_layers(student: fx.GraphModule) -> frozenset[str]:
    """Paths of layers whose weight, or an activation that reaches them, has less than 8 bits.

    Runtimes have no integer kernels for these. onnxruntime nevertheless rounds a bias inside such a
    convolution to the grid of the integer sum, whose step grows as the widths shrink: at W4A4 this
    changed 6 % of ResNet-20's predictions. A bias added after the convolution stays exact.
    """
    return frozenset(
        path for path, widths in _widths(student).items() if widths and min(widths) < 8
    )


def _widths(student: fx.GraphModule) -> dict[str, set[int]]:
    """By quantized layer, bits of its weight and of activations before it; none for float ones."""
    found: dict[str, set[int]] = {}
    for path, before in activation_widths(student).items():
        layer = student.get_submodule(path)
        assert isinstance(layer, QUANTIZED)  # noqa: S101 - only these are listed
        weight = layer.weight_quantizer
        own = {weight.grid.bits if weight.enabled else 32} if before else set[int]()
        found[path] = before | own
    return found


@dataclass
class _Rewriter:
    student: fx.GraphModule
    weight_type: WeightType
    narrow: frozenset[str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, TensorProto] = field(default_factory=dict)
    weight_bytes: int = 0
    _layer_of: dict[str, QuantizedLayer] = field(default_factory=dict)

    def visit(self, node: onnx.NodeProto) -> None:
        if node.domain == DOMAIN:
            path = next(a.s.decode() for a in node.attribute if a.name == "path")
            module = self.student.get_submodule(path)
            if isinstance(module, QUANTIZED):
                self._weight(path, module, node.output[0])
            elif isinstance(module, ActivationQuantizer):
                self._activation(path, module, node.input[0], node.output[0])
        elif (
            len(node.input) > 1
            and node.input[1] in self._layer_of
            and node.op_type in ("Conv", "Gemm")
        ):
            self._layer(node)
        else:
            self.nodes.append(node)

    def _weight(self, path: str, layer: QuantizedLayer, output: str) -> None:
        """Codes as an initializer, and the DequantizeLinear that gives the weight."""
        quantizer = layer.weight_quantizer
        names = [f"{path}.weight_{part}" for part in ("quantized", "scale", "zero_point")]
        if names[0] not in self.initializers:
            shift, kind = _storage(quantizer, self.weight_type)
            values = quantizer.codes(layer.weight.detach()).cpu() + shift
            scale, zero_point = quantizer.scale.cpu(), quantizer.zero_point.cpu() + shift
            if quantizer.axis is not None:
                scale, zero_point = scale.flatten(), zero_point.flatten()
            for tensor in (
                _integers(names[0], values.numpy(), kind),
                numpy_helper.from_array(scale.numpy(), names[1]),
                _integers(names[2], zero_point.numpy(), kind),
            ):
                self.initializers[tensor.name] = tensor
                self.weight_bytes += len(tensor.raw_data)
        node = helper.make_node("DequantizeLinear", names, [output], f"{path}/DequantizeLinear")
        if quantizer.axis is not None:
            node.attribute.append(helper.make_attribute("axis", quantizer.axis))
        self.nodes.append(node)
        if path in self.narrow:
            self._layer_of[output] = layer

    def _activation(self, path: str, quantizer: Quantizer, source: str, output: str) -> None:
        """QuantizeLinear and DequantizeLinear, after a Clip where the grid has less than 8 bits.

        All widths take an 8-bit type: what lies between the two nodes is never stored, and
        onnxruntime 1.31 refuses a Clip, such as ReLU6, in front of 4-bit codes.
        """
        grid = quantizer.grid
        kind = _TYPES[8, grid.qmin < 0]
        scale, zero_point = quantizer.scale.cpu(), quantizer.zero_point.cpu()
        if grid.bits < 8:
            limits = [
                self._float((code - zero_point) * scale, f"{path}.{part}")
                for part, code in (("min", grid.qmin), ("max", grid.qmax))
            ]
            clipped = f"{output}_clipped"
            clip = helper.make_node("Clip", [source, *limits], [clipped], f"{path}/Clip")
            self.nodes.append(clip)
            source = clipped
        parameters = [
            self._float(scale, f"{path}.scale"),
            self._add(_integers(f"{path}.zero_point", zero_point.numpy(), kind)),
        ]
        stored = f"{output}_quantized"
        for operator, read, write in (
            ("QuantizeLinear", source, stored),
            ("DequantizeLinear", stored, output),
        ):
            self.nodes.append(
                helper.make_node(operator, [read, *parameters], [write], f"{path}/{operator}")
            )

    def _layer(self, node: onnx.NodeProto) -> None:
        """A narrow layer: its bias becomes an Add of its own."""
        layer = self._layer_of[node.input[1]]
        if layer.bias is None or len(node.input) < 3:
            self.nodes.append(node)
            return
        shape = (-1, *[1] * (layer.weight.ndim - 2)) if node.op_type == "Conv" else (-1,)
        bias = self._float(layer.bias.detach().reshape(shape).cpu(), f"{node.input[2]}_added")
        output, product = node.output[0], f"{node.output[0]}_product"
        del node.input[2]
        node.output[0] = product
        self.nodes.append(node)
        self.nodes.append(helper.make_node("Add", [product, bias], [output], f"{node.name}/bias"))

    def _float(self, values: Tensor, name: str) -> str:
        return self._add(numpy_helper.from_array(values.numpy(), name))

    def _add(self, tensor: TensorProto) -> str:
        self.initializers[tensor.name] = tensor
        return tensor.name


def _storage(quantizer: Quantizer, weight_type: WeightType) -> tuple[int, int]:
    """What to add to all codes, and the ONNX type that then holds them.

    Moving codes and zero point by half the grid changes no value, and centres unsigned codes on 0.
    """
    grid = quantizer.grid
    has_sign = grid.qmin < 0
    wants_sign = has_sign if weight_type == "auto" else weight_type == "int8"
    half = 2 ** (grid.bits - 1)
    shift = 0 if wants_sign == has_sign else (-half if wants_sign else half)
    return shift, _TYPES[4 if grid.bits <= 4 else 8, wants_sign]


def _integers(name: str, values: NDArray[np.float32], kind: int) -> TensorProto:
    """An integer initializer; 4-bit codes are packed two to a byte, the first in the low half."""
    raw = np.ascontiguousarray(values).astype(np.int64).astype(np.uint8).reshape(-1)
    if kind in (TensorProto.UINT4, TensorProto.INT4):
        padded = np.append(raw, np.zeros(raw.size % 2, np.uint8)) & 0x0F
        raw = padded[0::2] | (padded[1::2] << 4)
    return helper.make_tensor(name, kind, values.shape, raw.tobytes(), raw=True)
