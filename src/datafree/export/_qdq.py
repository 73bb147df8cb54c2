"""From a student to ONNX nodes: integer weights, QuantizeLinear and DequantizeLinear.

The student is traced with a marker node in place of every quantizer; `rewrite` turns the markers
into standard ONNX, in the patterns that runtimes have integer kernels for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import fx

from datafree.export._draft import Draft, Grid
from datafree.export._markers import DOMAIN
from datafree.export._storage import (
    WIDENED,
    WeightType,
    integers,
    stored_weight,
)
from datafree.graph.settle import bias_scale, input_quantizers, rules_of
from datafree.graph.widths import activation_widths
from datafree.quant.modules import QUANTIZED, ActivationQuantizer, QuantizedLayer, Quantizer

# They move integer values about; before and behind these a runtime wants the same grid twice.
_RESHAPES = frozenset(("Flatten", "Reshape", "Squeeze"))
_SAME_BEHIND = frozenset(("Split", "DepthToSpace", "Resize", "Upsample"))
_MOVES = _RESHAPES | _SAME_BEHIND | {
    "Transpose", "Slice", "MaxPool", "Unsqueeze", "Identity", "Gather", "Pad",
}  # fmt: skip
_HIDES = frozenset(("Gather",))  # onnxruntime looks for the grid of a convolution through others
_LAYERS = ("Conv", "Gemm", "MatMul")


def rewrite(model: onnx.ModelProto, student: fx.GraphModule, weight_type: WeightType) -> int:
    """Replace all markers of `model` in place.

    Args:
        model: traced from `with_markers(student)`.
        student: where scales, zero points and codes come from.
        weight_type: see `stored_weight`.

    Returns:
        Bytes of the weights of quantized layers: codes, scales and zero points.
    """
    rewriter = _Rewriter(student, weight_type, model.graph)
    for node in model.graph.node:
        rewriter.visit(node)
    used = {output.name for output in model.graph.output}
    nodes: list[onnx.NodeProto] = []
    for node in reversed(rewriter.out.nodes):
        if used.intersection(node.output):
            used.update(node.input)
            nodes.append(node)
    initializers = [*model.graph.initializer, *rewriter.out.initializers.values()]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(reversed(nodes))
    model.graph.initializer.extend(tensor for tensor in initializers if tensor.name in used)
    for opset in [opset for opset in model.opset_import if opset.domain == DOMAIN]:
        model.opset_import.remove(opset)
    return rewriter.weight_bytes


def can_saturate(student: fx.GraphModule, weight_type: WeightType) -> bool:
    """Whether integer kernels would multiply 8-bit activations with int8 weights beyond 7 bits."""
    for path, widths in activation_widths(student).items():
        layer = student.get_submodule(path)
        if 8 not in widths or not isinstance(layer, QUANTIZED):
            continue
        if layer.weight_quantizer.enabled:
            stored = stored_weight(layer, weight_type)
            beyond = (stored.codes < -64) | (stored.codes > 64)
            if stored.kind == TensorProto.INT8 and bool(beyond.any()):
                return True
    return False


@dataclass
class _Rewriter:
    student: fx.GraphModule
    weight_type: WeightType
    traced: onnx.GraphProto
    out: Draft = field(default_factory=Draft)
    weight_bytes: int = 0
    _layers: dict[str, tuple[str, QuantizedLayer]] = field(default_factory=dict)
    _grids: dict[str, Grid] = field(default_factory=dict)
    _read: dict[str, str] = field(default_factory=dict)  # what computes a tensor reads, by tensor

    def __post_init__(self) -> None:
        """Look up what holds for the whole student."""
        self.rules = rules_of(self.student)
        self.inputs = input_quantizers(self.student)
        self.made = {name: node for node in self.traced.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.traced.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in self.traced.value_info}
        self.constants = {tensor.name: tensor for tensor in self.traced.initializer}
        self.narrow = frozenset(
            path for path, widths in activation_widths(self.student).items()
            if widths and min(*widths, self._bits(path)) < 8
        )  # fmt: skip

    def _bits(self, path: str) -> int:
        layer = self.student.get_submodule(path)
        assert isinstance(layer, QUANTIZED)  # noqa: S101 - only these are listed
        return layer.weight_quantizer.grid.bits if layer.weight_quantizer.enabled else 32

    def visit(self, node: onnx.NodeProto) -> None:
        if node.domain == DOMAIN:
            path = next(a.s.decode() for a in node.attribute if a.name == "path")
            module = self.student.get_submodule(path)
            if isinstance(module, QUANTIZED):
                self._weight(path, module, node.output[0])
            elif isinstance(module, ActivationQuantizer):
                self._activation(path, module, node.input[0], node.output[0])
            return
        weight = next((name for name in node.input if name in self._layers), None)
        if weight is not None and node.op_type in _LAYERS:
            self._layer(node, *self._layers[weight])
        elif weight is not None and node.op_type == "Transpose":
            self._layers[node.output[0]] = self._layers[weight]
            self.out.nodes.append(node)
        elif node.op_type == "Add" and self._added_bias(node):
            self.out.nodes.append(node)
        else:
            self._plain(node)

    def _plain(self, node: onnx.NodeProto) -> None:
        """A node without weights; the grid of what it moves about is known behind it."""
        grid = self._grids.get(node.input[0]) if node.op_type in _MOVES and node.input else None
        self.out.nodes.append(node)
        if grid is None:
            return
        for place, output in enumerate(list(node.output)):
            if self._integer and self._wants_grid(node, output):
                node.output[place] = f"{output}/moved"
                self.out.pair(output, grid, node.output[place], output)
            self._grids[output] = grid

    def _wants_grid(self, node: onnx.NodeProto, output: str) -> bool:
        """Whether integer kernels behind `node` want its grid said again."""
        # A convolution takes zeros in front of it in as its own padding.
        into_layer = all(reader.op_type == "Conv" for reader in self.readers.get(output, ()))
        return node.op_type in _SAME_BEHIND or (node.op_type == "Pad" and not into_layer)

    @property
    def _integer(self) -> bool:
        """Whether this student was made for a runtime's integer kernels."""
        return bool(self.rules.behind) and self.rules.placement == "every_edge"

    def _weight(self, path: str, layer: QuantizedLayer, output: str) -> None:
        """Codes as an initializer, widened to 8 bits, and the DequantizeLinear behind them."""
        quantizer = layer.weight_quantizer
        names = [f"{path}.weight_{part}" for part in ("quantized", "scale", "zero_point")]
        stored = stored_weight(layer, self.weight_type)
        wide = WIDENED.get(stored.kind)
        if names[0] not in self.out.initializers:
            scale, zero_point = quantizer.scale.cpu(), stored.zero_point
            if quantizer.axis is not None:
                scale, zero_point = scale.flatten(), zero_point.flatten()
            for tensor in (
                integers(names[0], stored.codes, stored.kind),
                numpy_helper.from_array(scale.numpy(), names[1]),
                # Left out, it would be 0 too, but onnxruntime's exact mode then fails.
                integers(names[2], zero_point, wide or stored.kind),
            ):
                self.out.initializers[tensor.name] = tensor
                self.weight_bytes += len(tensor.raw_data)
        if wide is not None:
            # Folded when a session loads: small on disk, and fast kernels have 8 bits.
            cast = helper.make_node(
                "Cast", names[:1], [f"{output}/widened"], f"{path}/Cast", to=wide
            )
            self.out.nodes.append(cast)
            names[0] = cast.output[0]
        node = helper.make_node("DequantizeLinear", names, [output], f"{path}/DequantizeLinear")
        if quantizer.axis is not None:
            node.attribute.append(helper.make_attribute("axis", quantizer.axis))
        self.out.nodes.append(node)
        self._layers[output] = (path, layer)

    def _activation(
        self, path: str, quantizer: ActivationQuantizer, source: str, output: str
    ) -> None:
        """QuantizeLinear and DequantizeLinear; codes of less than 8 bits are clipped in between.

        All widths take an 8-bit type, whose kernels are the fast ones.
        """
        signed = self.rules.signed_activations and quantizer.grid.qmin < 0
        grid = self.out.grid(path, quantizer, signed=signed)
        before = self.made.get(source)
        if before is not None and before.op_type == "ReduceMean" and self._is_pool(before):
            source = self._pooled(before, grid)
        elif before is not None and before.op_type == "Clip" and grid.limits is not None:
            source = self._unclipped(before, quantizer)
        self.out.pair(path, grid, source, output)
        self._grids[output] = grid

    def _is_pool(self, node: onnx.NodeProto) -> bool:
        """Whether a mean goes over height and width."""
        rules = self.rules
        if "avg_pool" not in rules.operators or rules.placement != "every_edge":
            return False
        if len(node.input) < 2 or self.ranks.get(node.output[0]) != (4 if _kept(node) else 2):
            return False
        axes = self._constant(node.input[1])
        return sorted(int(axis) % 4 for axis in axes) == [2, 3]

    def _constant(self, name: str) -> list[float]:
        """The values of a constant of the traced graph; none where it is none."""
        node = self.made.get(name)
        if node is not None and node.op_type == "Constant":
            return numpy_helper.to_array(node.attribute[0].t).reshape(-1).tolist()
        tensor = self.constants.get(name)
        return [] if tensor is None else numpy_helper.to_array(tensor).reshape(-1).tolist()

    def _pooled(self, mean: onnx.NodeProto, grid: Grid) -> str:
        """A mean over height and width as the pooling that runtimes have an integer kernel for."""
        kept = _kept(mean)
        self.out.nodes.remove(mean)
        (output,) = mean.output
        pooled = output if kept else f"{output}/pooled"
        pool = helper.make_node("GlobalAveragePool", mean.input[:1], [pooled], mean.name)
        pool.metadata_props.extend(mean.metadata_props)
        self.out.nodes.append(pool)
        if not kept:
            self.out.pair(f"{output}/pooled", grid, pooled, f"{output}/pooled_again")
            flat = helper.make_node(
                "Flatten", [f"{output}/pooled_again"], [output], f"{mean.name}/Flatten"
            )
            self.out.nodes.append(flat)
        return output

    def _unclipped(self, clip: onnx.NodeProto, quantizer: Quantizer) -> str:
        """What a Clip reads, where the codes are clipped to no more than it leaves."""
        ends = [number for name in clip.input[1:3] for number in self._constant(name)]
        if len(ends) < 2:
            return clip.output[0]
        grid, zero, scale = quantizer.grid, float(quantizer.zero_point), float(quantizer.scale)
        within = (grid.qmin - zero) * scale >= ends[0] and (grid.qmax - zero) * scale <= ends[1]
        return clip.input[0] if within else clip.output[0]

    def _layer(self, node: onnx.NodeProto, path: str, layer: QuantizedLayer) -> None:
        """A layer with a quantized weight: what it reads, and its bias."""
        source = self._read[node.output[0]] = node.input[0]
        grid = self._grids.get(source)
        moved = next((n for n in reversed(self.out.nodes) if source in n.output), None)
        if (
            grid is not None and self._integer and moved is not None
            and moved.op_type in (_MOVES if node.op_type != "Conv" else _HIDES)
        ):  # fmt: skip
            node.input[0] = f"{source}/again"
            if node.input[0] not in self._grids:
                self.out.pair(source, grid, source, node.input[0])
                self._grids[node.input[0]] = grid
        self._own_transpose(node)
        if len(node.input) > 2 and layer.bias is not None:
            self._bias(node, 2, path, layer)
        else:
            self.out.nodes.append(node)
        self._layers[node.output[0]] = (path, layer)

    def _own_transpose(self, node: onnx.NodeProto) -> None:
        """Transposed weights that several calls of a layer read, once for every call of it."""
        name = node.input[1]
        maker = self.made.get(name)
        if maker is None or maker.op_type != "Transpose" or len(self.readers[name]) < 2:
            return
        own = onnx.NodeProto()
        own.CopyFrom(maker)
        node.input[1] = own.output[0] = f"{node.output[0]}/{maker.op_type}"
        own.name = own.output[0]
        self.out.nodes.append(own)

    def _added_bias(self, node: onnx.NodeProto) -> bool:
        """Whether this is the bias of a linear layer, which is then put on its grid."""
        for place, name in enumerate(node.input):
            product = node.input[1 - place]
            if name.endswith(".bias") and product in self._layers:
                path, layer = self._layers[product]
                if name == f"{path}.bias" and layer.bias is not None:
                    self._integer_bias(node, place, path, layer, product)
                    return True
        return False

    def _bias(self, node: onnx.NodeProto, place: int, path: str, layer: QuantizedLayer) -> None:
        """A bias of integers; of a narrow layer that knows no integer bias, an Add of its own.

        onnxruntime rounds a float bias inside a convolution to the grid of the integer sum, whose
        step grows as the widths shrink: at W4A4 this changed 6 % of ResNet-20's predictions. A bias
        added after the convolution stays exact.
        """
        if self._integer_bias(node, place, path, layer, node.output[0]) or path not in self.narrow:
            self.out.nodes.append(node)
            return
        assert layer.bias is not None  # noqa: S101 - asked for by the caller
        shape = (-1, *[1] * (layer.weight.ndim - 2)) if node.op_type == "Conv" else (-1,)
        bias = self.out.number(layer.bias.detach().reshape(shape).cpu(), f"{node.input[2]}_added")
        output, product = node.output[0], f"{node.output[0]}_product"
        del node.input[2]
        node.output[0] = product
        self.out.nodes.append(node)
        self.out.nodes.append(
            helper.make_node("Add", [product, bias], [output], f"{node.name}/bias")
        )

    def _integer_bias(
        self, node: onnx.NodeProto, place: int, path: str, layer: QuantizedLayer, product: str
    ) -> bool:
        """Let `node` read its bias as int32 codes, if the target has such and the grid is known.

        Codes are those of the grid of `product`: calls of a layer that read different ones have
        codes of their own.
        """
        found = self._quantizer_of(path, product)
        if not self.rules.integer_bias or found is None or layer.bias is None:
            return False
        stem, quantizer = found
        step = bias_scale(layer, quantizer.scale).cpu()
        codes = torch.round(layer.bias.detach().cpu().double() / step.double())
        tensor = helper.make_tensor(
            f"{stem}_quantized", TensorProto.INT32, codes.shape,
            codes.to(torch.int32).numpy().tobytes(), raw=True,
        )  # fmt: skip
        output = f"{stem}_dequantized"
        if tensor.name not in self.out.initializers:
            read = [self.out.add(tensor), self.out.number(step, f"{stem}_scale")]
            dequantize = helper.make_node(
                "DequantizeLinear", read, [output], f"{stem}/DequantizeLinear"
            )
            if step.ndim:
                dequantize.attribute.append(helper.make_attribute("axis", 0))
            self.out.nodes.append(dequantize)
        node.input[place] = output
        return True

    def _quantizer_of(self, path: str, product: str) -> tuple[str, ActivationQuantizer] | None:
        """A name for the bias that is added to `product`, and the quantizer of what was read."""
        only = self.inputs.get(path)
        if only is not None:
            return f"{path}.bias", only
        grid = self._grids.get(self._read.get(product, ""))
        if grid is None:
            return None
        quantizer = self.student.get_submodule(grid.quantizer)
        assert isinstance(quantizer, ActivationQuantizer)  # noqa: S101 - grids are made of these
        return f"{path}.bias_{grid.quantizer}", quantizer


def _kept(mean: onnx.NodeProto) -> bool:
    """Whether a mean keeps the dimensions that it goes over."""
    return bool(next((a.i for a in mean.attribute if a.name == "keepdims"), 1))
