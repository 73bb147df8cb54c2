"""What a written file holds, read back and compared with the student number by number.

A file that computes nearly the same on a few images may still hold a wrong number: a channel that
these images do not reach, or a step that noise hides. So nothing is run here. Every code, zero
point, scale and bias of a quantized layer that the file stores has to be the student's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from torch import Tensor, fx

from datafree.export._differs import Differs
from datafree.graph.settle import bias_scale, read_quantizers
from datafree.quant.modules import QUANTIZED, ActivationQuantizer, QuantizedLayer, Quantizer

_LIMITS = {TensorProto.UINT8: (0, 255), TensorProto.INT8: (-128, 127)}
_LAYERS = frozenset(("Conv", "Gemm", "MatMul"))


def same(what: str, expected: Tensor, found: Tensor) -> None:
    """Refuse numbers that are not equal to the last bit.

    Args:
        what: for the message.
        expected: the student's, any shape.
        found: the file's.

    Raises:
        Differs: they are not.
    """
    if expected.shape != found.shape:
        shapes = (tuple(tensor.shape) for tensor in (expected, found))
        raise Differs(what, "shapes {} and {}".format(*shapes))
    # NaN is no number that any of them has.
    wrong = torch.nonzero(expected.double() != found.double())
    if len(wrong):
        at = tuple(wrong[0].tolist())
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        place = f"at {list(at)} " if at else ""
        raise Differs(what, f"{place}{found[at]:.9g} for {expected[at]:.9g}{more}")


def bare_codes(layer: QuantizedLayer) -> Tensor:
    """The codes of the weight of `layer` counted from their zero points, on the CPU."""
    quantizer = layer.weight_quantizer
    codes = quantizer.codes(layer.weight.detach()) - quantizer.zero_point
    return codes.cpu()


def quantized_layers(student: fx.GraphModule) -> dict[str, QuantizedLayer]:
    """The layers that `student` calls and whose weights are on a grid, by path in order."""
    found: dict[str, QuantizedLayer] = {}
    for path in (str(node.target) for node in student.graph.nodes if node.op == "call_module"):
        layer = student.get_submodule(path)
        if isinstance(layer, QUANTIZED) and layer.weight_quantizer.enabled:
            found[path] = layer
    return found


def check_state(student: Mapping[str, Tensor], found: Mapping[str, Any]) -> None:
    """Compare tensors by name: those of an archive with the student's.

    Args:
        student: all that has to be stored.
        found: in the archive; more may be in it, and one of several names of the same tensor.

    Raises:
        Differs: a tensor is missing or another.
    """
    known: dict[int, str] = {}
    for name, tensor in student.items():
        first = known.setdefault(id(tensor), name)
        stored = found.get(name, found.get(first))
        if stored is None:
            raise Differs(f"the numbers of {name}", "they are missing")
        same(f"the numbers of {name}", tensor.cpu(), stored.cpu())


def check_onnx(model: onnx.ModelProto, student: fx.GraphModule) -> None:
    """Compare all numbers of quantizers, weights and biases in `model` with those of `student`.

    Weights are found behind the layers that read them: a layer's DequantizeLinear, perhaps behind
    a Transpose, that reads an initializer, perhaps widened by a Cast. What the student keeps in
    float is compared where it is stored as it is.

    Args:
        model: with its tensors.
        student: that was written.

    Raises:
        Differs: a number is another, or a layer is missing.
    """
    file = _File(model)
    layers, read = quantized_layers(student), read_quantizers(student)
    missing = set(layers)
    for node in model.graph.node:
        source = file.dequantized(node.input[1]) if node.op_type in _LAYERS else None
        if source is None:
            continue
        path = file.stem(source.input[0]).removesuffix(".weight_quantized")
        if path in layers:
            missing.discard(path)
            file.once(source.input[0], lambda s=source, p=path: _check_weight(file, s, p, layers))
    for path in missing:
        raise Differs(f"the codes of the weight of {path}", "no layer of the file reads them")
    for name in file.tensors:
        path, _, last = name.rpartition(".")
        if last.startswith("bias") and last.endswith("_quantized") and path in layers:
            scale = file.values(f"{name.removesuffix('_quantized')}_scale")
            _check_bias(path, layers[path], file.values(name), scale, read[path])
    for path, quantizer in student.named_modules():
        if isinstance(quantizer, ActivationQuantizer) and quantizer.enabled:
            _check_activation(file, path, quantizer)
    _check_floats(file, student)


class _File:
    """A model's tensors by name, and who makes what."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self.made = {name: node for node in model.graph.node for name in node.output}
        self.folded = {
            name
            for node in model.graph.node
            if node.op_type in (*_LAYERS, "ConvTranspose") and node.input[1] in self.tensors
            for name in node.input[1:]
        }
        self._seen: set[str] = set()

    def values(self, name: str) -> Tensor:
        """The numbers of an initializer, as float64; 4-bit codes unpacked."""
        if name not in self.tensors:
            raise Differs(f"the numbers of {name}", "they are missing")
        values: NDArray[np.float64] = numpy_helper.to_array(self.tensors[name]).astype(np.float64)
        return torch.from_numpy(values)

    def dequantized(self, name: str) -> onnx.NodeProto | None:
        """The DequantizeLinear that `name` comes from, perhaps transposed."""
        node = self.made.get(name)
        while node is not None and node.op_type == "Transpose":
            node = self.made.get(node.input[0])
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def stem(self, name: str) -> str:
        """The initializer behind a Cast, or `name`."""
        node = self.made.get(name)
        return node.input[0] if node is not None and node.op_type == "Cast" else name

    def once(self, name: str, check: Callable[[], None]) -> None:
        """Call `check` unless that was done for `name`: several calls of a layer share it."""
        if name not in self._seen:
            self._seen.add(name)
            check()


def _check_weight(
    file: _File, node: onnx.NodeProto, path: str, layers: Mapping[str, QuantizedLayer]
) -> None:
    """What a DequantizeLinear reads: codes, scales, zero points, by output channel."""
    layer = layers[path]
    quantizer, (codes_name, scale_name, zero_name) = layer.weight_quantizer, node.input
    codes, scale, zero = (file.values(n) for n in (file.stem(codes_name), scale_name, zero_name))
    shape = () if quantizer.axis is None else (-1, *[1] * (codes.ndim - 1))
    same(f"the scales of the weight of {path}", quantizer.scale.flatten().cpu(), scale.flatten())
    if quantizer.axis is not None:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        same(f"the axis of the scales of {path}", torch.tensor(quantizer.axis), torch.tensor(axis))
    centred = codes - zero.reshape(shape)
    same(f"the codes of the weight of {path}", bare_codes(layer), centred)


def _check_bias(
    path: str,
    layer: QuantizedLayer,
    codes: Tensor,
    scale: Tensor,
    quantizers: Iterable[ActivationQuantizer | None],
) -> None:
    """A bias of codes at the product of the scales of a layer's weight and of what it reads."""
    steps = [bias_scale(layer, q.scale).cpu() for q in quantizers if q is not None]
    if layer.bias is None or not steps:
        raise Differs(f"the codes of the bias of {path}", "the student has none")
    step = next((one for one in steps if torch.equal(one.double(), scale)), steps[0])
    same(f"the scales of the bias of {path}", step, scale)
    wanted = torch.round(layer.bias.detach().cpu().double() / step.double())
    same(f"the codes of the bias of {path}", wanted, codes)


def _check_activation(file: _File, path: str, quantizer: ActivationQuantizer) -> None:
    """A pair's scale, and its smallest and largest code counted from the zero point."""
    if f"{path}.scale" not in file.tensors:
        return  # nothing in the file reads it
    same(f"the scale of {path}", quantizer.scale.cpu(), file.values(f"{path}.scale"))
    name, grid = f"{path}.zero_point", quantizer.grid
    zero, kind = file.values(name), file.tensors[name].data_type
    ends = [torch.tensor(float(end)) for end in _LIMITS[cast("Any", kind)]]
    if grid.bits < 8:
        ends = [file.values(f"{path}.{end}") for end in ("min", "max")]
    for what, end, limit in zip(("smallest", "largest"), ends, (grid.qmin, grid.qmax), strict=True):
        expected = limit - quantizer.zero_point.cpu()
        same(f"the zero point or the {what} code of {path}", expected, end.double() - zero)


def _check_floats(file: _File, student: fx.GraphModule) -> None:
    """Parameters and buffers that are stored under their names as they are.

    Not those of layers in float: torch's exporter folds batch norms into them.
    """
    held = dict(student.named_parameters()) | dict(student.named_buffers())
    for path in (p for p, m in student.named_modules() if isinstance(m, Quantizer)):
        held = {name: v for name, v in held.items() if not name.startswith(f"{path}.")}
    for name, tensor in held.items():
        stored = next((n for n in (name, f"{name}_added") if n in file.tensors), None)
        if stored is not None and stored not in file.folded:
            found = file.values(stored)
            if found.numel() == tensor.numel():
                same(f"the numbers of {name}", tensor.detach().cpu().flatten(), found.flatten())
