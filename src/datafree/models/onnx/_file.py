"""An ONNX file: read without running anything of it, and refused in one line where it must be.

Nothing outside the folder of the file is read: onnx refuses external data that lie elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import external_data_helper, inliner

from datafree.errors import ModelError

_QUANTIZED = ("QLinear", "QuantizeLinear", "DequantizeLinear", "DynamicQuantize")
_INTEGER = frozenset({"ConvInteger", "MatMulInteger", "QGemm", "QAttention", "QEmbedLayerNorm"})
_FLOAT = onnx.TensorProto.FLOAT
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class OnnxFile:
    """A float network with one batch of images as its input, as it stands in the file.

    Attributes:
        path: where it was read.
        model: the whole model, external data and local functions within.
        images: name of the input.
        batch: number of images the file is fixed to; None where it takes any.
        sizes: channels, height, width; None where they are free.
        channels_last: whether its images are (batch, height, width, channels).
    """

    path: Path
    model: onnx.ModelProto
    images: str
    batch: int | None
    sizes: tuple[int | None, int | None, int | None]
    channels_last: bool


def read_file(path: Path) -> OnnxFile:
    """Read and check the file at `path`.

    Raises:
        ModelError: it is missing or damaged, its external data are missing or elsewhere, it is
            quantized already, was exported in training mode, has operators of other domains, or
            does not take one float batch of images.
    """
    model = _loaded(path)
    for node in nodes(model.graph):
        _check_node(node, path)
    _check_weights(model, path)
    return _described(path, model)


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes of `graph` and of the graphs within them."""
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from nodes(inner)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The bodies of a node that has some (If, Loop)."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def told(node: onnx.NodeProto) -> str:
    """A node for people: its operator and its name, or that of its first output."""
    kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return f"{kind} (node {node.name or next(iter(node.output), '?')})"


def first_line(error: BaseException) -> str:
    """What an error says, without its further lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:300]


def _loaded(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from None
    except (DecodeError, ValueError) as error:
        raise ModelError(f"{path} is no ONNX file, or damaged: {first_line(error)}") from None
    if not model.graph.node:
        raise ModelError(f"{path} is no ONNX file, or damaged: it holds no network")
    latest = onnx.defs.onnx_opset_version()
    opset = max((item.version for item in model.opset_import if not item.domain), default=0)
    if opset > latest:
        raise ModelError(
            f"{path} uses opset {opset}, and onnx {onnx.__version__} knows those up to {latest}: "
            "export it with opset 21, or install a later onnx"
        )
    _load_weights(model, path)
    try:
        if not all(value.type.tensor_type.HasField("shape") for value in model.graph.output):
            model = onnx.shape_inference.infer_shapes(model)  # the checker wants to see one
        onnx.checker.check_model(model)
        return inliner.inline_local_functions(model) if model.functions else model
    except Exception as error:  # noqa: BLE001 - the checker of onnx raises what it likes
        raise ModelError(
            f"{path} is damaged, or of another version of ONNX than {onnx.__version__}, which is "
            f"installed: {first_line(error)}"
        ) from None


def _load_weights(model: onnx.ModelProto, path: Path) -> None:
    """Load external data, which onnx refuses outside the folder and behind links."""
    folder = path.resolve().parent
    try:
        external_data_helper.load_external_data_for_model(model, str(folder))
    except Exception as error:  # noqa: BLE001 - a hostile or damaged file can fail in any way
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location" and not (folder / entry.value).exists():
                    raise ModelError(
                        f"{path} keeps its weights in {entry.value}, which is not there: put it "
                        "beside the model"
                    ) from None
        raise ModelError(f"the external data of {path} are refused: {first_line(error)}") from None


def _check_node(node: onnx.NodeProto, path: Path) -> None:
    if node.op_type.startswith(_QUANTIZED) or node.op_type in _INTEGER:
        raise ModelError(
            f"{path} is quantized already, by {told(node)}: give the float file it was made from"
        )
    if node.domain not in ("", "ai.onnx"):
        raise ModelError(
            f"{path} has an operator that is not ONNX's own: {told(node)}; export the network"
            " without it, before a runtime optimised the file"
        )
    if any(item.name == "training_mode" and item.i for item in node.attribute):
        raise ModelError(
            f"{path} was exported in training mode, as {told(node)} tells: call model.eval() first"
        )


def _check_weights(model: onnx.ModelProto, path: Path) -> None:
    other = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
    for tensor in model.graph.initializer:
        if tensor.data_type in other:
            kind = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
            raise ModelError(
                f"{path} computes in {kind} ({tensor.name}): export the network in float32"
            )
    if model.graph.sparse_initializer:
        raise ModelError(f"{path} has sparse weights, which are not read: export it without")


def _described(path: Path, model: onnx.ModelProto) -> OnnxFile:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise ModelError(
            f"{path} has {len(inputs)} inputs ({names}): it must take one batch of images"
        )
    tensor = inputs[0].type.tensor_type
    if tensor.elem_type != _FLOAT:
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
        raise ModelError(
            f"{path} takes {kind} ({inputs[0].name}): export the network behind that conversion, so"
            " that it takes float32"
        )
    if len(tensor.shape.dim) != 4:
        raise ModelError(f"{path} must take one batch of images (batch, channels, height, width)")
    batch, *rest = (dim.dim_value or None for dim in tensor.shape.dim)
    last = rest[2] in _CHANNELS and rest[0] not in _CHANNELS
    sizes = (rest[2], rest[0], rest[1]) if last else (rest[0], rest[1], rest[2])
    return OnnxFile(path, model, inputs[0].name, batch, sizes, last)
