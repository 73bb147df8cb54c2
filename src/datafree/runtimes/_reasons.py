"""Why a layer has no integer kernel: pure functions of the ONNX graph, one per runtime.

What each runtime asks for was measured pattern by pattern; the tests show every pattern to the
runtime itself. A reason is what layers with the same cause share, the detail is a layer's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from onnx import NodeProto

from datafree.runtimes._graph import RECURRENT, Graph
from datafree.runtimes.base import UNKNOWN

Found = tuple[str, str]
_Check = Callable[[Graph, NodeProto], Found | None]
ON_PURPOSE = "left in float: neither its input nor its weights are quantized"
_NO_QUANTIZER = "no quantizer behind it"
_SHARED = "its output has several readers, and a quantizer must be the only one"
_KEEPS_CODES = ("Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
_SCALE_ERROR = 0.01  # relative; onnxruntime takes no bias whose scale is further off


def onnxruntime_reason(graph: Graph, node: NodeProto) -> Found:
    """Why onnxruntime carries `node` of `graph` out in float; reason and detail."""
    checks = (_no_kernel, _operands, _narrow_weights, _clipped_codes, _bias, _behind)
    return _first(graph, node, checks)


def openvino_reason(graph: Graph, node: NodeProto) -> Found:
    """Why OpenVINO carries `node` of `graph` out in float; reason and detail."""
    return _first(graph, node, (_operands, _narrow_weights, _signed_weights, _transposed))


def _first(graph: Graph, node: NodeProto, checks: Iterable[_Check]) -> Found:
    for check in checks:
        if (found := check(graph, node)) is not None:
            return found
    return UNKNOWN, ""


def _no_kernel(graph: Graph, node: NodeProto) -> Found | None:
    del graph
    if node.op_type == "ConvTranspose":
        return "transposed convolution: this runtime has no integer kernel for it", ""
    if node.op_type in RECURRENT:
        return "recurrent layer: this runtime has no integer kernel for it", ""
    return None


def _transposed(graph: Graph, node: NodeProto) -> Found | None:
    """OpenVINO's transposed convolutions."""
    if node.op_type != "ConvTranspose":
        return None
    codes = graph.input_codes(node)
    if codes is not None and codes.zero is not None and codes.zero.any():
        detail = f"zero point {int(codes.zero.flat[0])}"
        return "transposed convolution whose input has a zero point other than 0", detail
    return "transposed convolution: this processor has no integer kernel for it", ""


def _operands(graph: Graph, node: NodeProto) -> Found | None:
    """Both operands must come from codes of 8 bits."""
    before, weight = graph.input_codes(node), graph.weight_codes(node)
    if before is None and weight is None:
        return ON_PURPOSE, ""
    if node.op_type in RECURRENT:
        return "recurrent layer: this runtime has no integer kernel for it", ""
    if before is None:
        return "its input is not quantized", ""
    if weight is None:
        return "its weights are not quantized", ""
    for what, codes in (("input has", before), ("weights have", weight)):
        if codes.bits > 8:
            return f"its {what} {codes.bits} bits: integer kernels take 8", codes.type_name
    if before.bits < 8:
        return f"its input is typed {before.type_name}: integer kernels take 8 bits", ""
    return None


def _narrow_weights(graph: Graph, node: NodeProto) -> Found | None:
    codes = graph.weight_codes(node)
    if codes is None:
        return None
    if codes.bits < 8:
        kind = codes.type_name
        return f"{kind} weights without a Cast to int8 in front of DequantizeLinear", ""
    maker = graph.dequantizer(graph.weight_of(node) or "")
    given = {} if maker is None else {a.name: int(a.i) for a in maker.attribute}
    if given.get("block_size", 0):
        return "its weights have a scale for every block", ""
    if node.op_type == "MatMul" and codes.scale is not None and codes.scale.size > 1:
        last = (codes.scale.ndim == 1) and given.get("axis", 1) in (0, -2)
        if last and maker is not None and graph.made_by(node.input[1]) is maker:
            return "the scales of its weights run along the axis that is summed", ""
    return None


def _signed_weights(graph: Graph, node: NodeProto) -> Found | None:
    """OpenVINO multiplies signed weights around zero only."""
    codes = graph.weight_codes(node)
    if codes is None:
        return None
    if codes.type_name.startswith("u"):
        return (
            "its weights are unsigned: this runtime takes int8 with zero point 0",
            codes.type_name,
        )
    if codes.zero is not None and codes.zero.any():
        return "its weights have zero points other than 0", ""
    return None


def _clipped_codes(graph: Graph, node: NodeProto) -> Found | None:
    codes = graph.input_codes(node)
    if codes is not None and codes.clipped and codes.type_name == "int8":
        return "its input is clipped as int8 codes, which only uint8 codes may be", ""
    return None


def _bias(graph: Graph, node: NodeProto) -> Found | None:
    if len(node.input) < 3 or node.op_type not in ("Conv", "Gemm"):
        return None
    maker = graph.made_by(node.input[2])
    if maker is None or maker.op_type != "DequantizeLinear":
        return None
    bias, before, weight = graph.codes(maker), graph.input_codes(node), graph.weight_codes(node)
    if bias.bits < 32:
        return "its bias is quantized to less than 32 bits", bias.type_name
    if before is None or weight is None:
        return None
    if bias.scale is None or before.scale is None or weight.scale is None:
        return None
    product = np.asarray(before.scale * weight.scale)
    if np.abs(bias.scale / product - 1).max() > _SCALE_ERROR:
        return "the scale of its bias is not that of input times weights", ""
    return None


def _behind(graph: Graph, node: NodeProto) -> Found | None:
    """A quantizer must be the only reader, with at most one Relu or Clip that it makes needless."""
    name, between, added = node.output[0], None, False
    for _ in range(len(graph.nodes)):
        readers = graph.read_by(name)
        if name in graph.outputs or len(readers) != 1:
            return _readers(graph, node, name, readers)
        reader = readers[0]
        if reader.op_type == "QuantizeLinear":
            return _redundant(graph, between, reader) or _types(graph, node, reader)
        if reader.op_type in ("Relu", "Clip") and between is None:
            between = reader
        elif reader.op_type == "Clip" and between is not None:
            return "a float Clip stands in front of the quantizer", graph.label(reader)
        elif _adds_constant(graph, reader) and not added:
            if node.op_type == "Conv":
                return "its bias is added by an Add of its own", graph.label(reader)
            added = True  # products take such a bias in
        elif reader.op_type not in _KEEPS_CODES:
            return _NO_QUANTIZER, f"read in float by {_named(graph, [reader])}"
        name = reader.output[0]
    return None


def _readers(graph: Graph, node: NodeProto, name: str, readers: list[NodeProto]) -> Found:
    """An output that leaves the network, or that several nodes read."""
    quantizers = [reader for reader in readers if reader.op_type == "QuantizeLinear"]
    others = [reader for reader in readers if reader.op_type != "QuantizeLinear"]
    if name in graph.outputs and not readers:
        other = "; a bias of 32-bit codes would do too" if node.op_type == "Gemm" else ""
        return _NO_QUANTIZER, f"an output of the network{other}"
    if not quantizers:
        return _NO_QUANTIZER, _named(graph, others)
    if name in graph.outputs:
        return _SHARED, "it is an output of the network too"
    if not others:
        return _SHARED, f"{len(quantizers)} quantizers"
    return _SHARED, f"in float too: {_named(graph, others)}"


def _adds_constant(graph: Graph, node: NodeProto) -> bool:
    return node.op_type == "Add" and any(name in graph.constants for name in node.input)


def _redundant(graph: Graph, between: NodeProto | None, quantizer: NodeProto) -> Found | None:
    """A Relu or Clip goes only if codes cannot stand for what it cuts off."""
    codes = graph.codes(quantizer)
    if between is None or codes.zero is None or codes.scale is None:
        return None
    zero, scale, lowest = int(codes.zero.flat[0]), float(codes.scale.flat[0]), codes.lowest
    low, high = _bounds(graph, between)
    if (lowest - zero) * scale < low:
        what = f"zero point above the lowest code behind {between.op_type}"
        return what, f"{zero}, lowest {lowest}"
    top = lowest + 2**codes.bits - 1 - zero
    if top * scale > high * (1 + 1e-6):
        what = f"a scale too large behind Clip: codes reach above {high:g}"
        return what, f"scale {scale:.4g}, at most {high:g}/{top}"
    return None


def _types(graph: Graph, node: NodeProto, quantizer: NodeProto) -> Found | None:
    before, after = graph.input_codes(node), graph.codes(quantizer)
    if before is not None and before.kind != after.kind:
        detail = f"{before.type_name}, {after.type_name}"
        return "codes of its input and of its output have different types", detail
    return None


def _bounds(graph: Graph, node: NodeProto) -> tuple[float, float]:
    """Lowest and highest value behind a Relu or Clip."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    values = [graph.value(name) if name else None for name in node.input[1:]]
    values += [None] * (2 - len(values))
    low, high = values[:2]
    return (
        -np.inf if low is None else float(low.flat[0]),
        np.inf if high is None else float(high.flat[0]),
    )


def _named(graph: Graph, nodes: list[NodeProto]) -> str:
    return ", ".join(f"{node.op_type} {graph.label(node)}" for node in nodes)
