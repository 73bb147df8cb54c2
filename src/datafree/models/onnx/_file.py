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

from datafree.bounds import check_ordinary, first_line
from datafree.errors import ModelError
from datafree.models.onnx._bounds import check_external, check_functions

_QUANTIZED = ("QLinear", "QuantizeLinear", "DequantizeLinear", "DynamicQuantize")
_INTEGER = frozenset({"ConvInteger", "MatMulInteger", "QGemm", "QAttention", "QEmbedLayerNorm"})
_REPEATING = frozenset({"Loop", "Scan"})
_FLOAT, _BYTE = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8
_CHANNELS = (1, 3, 4)
_IMAGE_RANK = 3


@dataclass(frozen=True)
class Taken:
    """One input of a file.

    Attributes:
        name: in the file.
        sizes: of one item, channels first where it is an image; None where they are free.
        channels_last: whether the file takes it as (batch, height, width, channels).
        pixels: whether it is uint8, an image as decoders give it.
    """

    name: str
    sizes: tuple[int | None, ...]
    channels_last: bool = False
    pixels: bool = False

    def stored(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """`shape`, of an item with channels first, in the order of the file."""
        return (*shape[1:], shape[0]) if self.channels_last else shape


@dataclass(frozen=True)
class OnnxFile:
    """A float network as it stands in the file.

    Attributes:
        path: where it was read.
        model: the whole model, external data and local functions within.
        inputs: what it takes, the number of images aside.
        batch: number of images the file is fixed to; None where it takes any.
    """

    path: Path
    model: onnx.ModelProto
    inputs: tuple[Taken, ...]
    batch: int | None


def read_file(path: Path) -> OnnxFile:
    """Read and check the file at `path`.

    Raises:
        ModelError: it is missing or damaged, its external data are missing or elsewhere, it is
            quantized already, was exported in training mode, has operators of other domains, or
            takes something else than batches of float tensors, or of one image of uint8.
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


def _loaded(path: Path) -> onnx.ModelProto:
    try:
        check_ordinary(path)
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
    check_functions(model, path)
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
        check_external(model, folder)
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
    if node.op_type in _REPEATING:
        raise ModelError(
            f"{path} repeats a part of itself, by {told(node)}, perhaps for ever: export the"
            " network without it"
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
    values = [value for value in model.graph.input if value.name not in weights]
    if not values:
        raise ModelError(f"{path} has no inputs: it must take batches of images")
    inputs = tuple(_taken(value, path, alone=len(values) == 1) for value in values)
    dims = {value.name: value.type.tensor_type.shape.dim[0].dim_value for value in values}
    fixed = {size for size in dims.values() if size}
    if len(fixed) > 1 or (fixed and not all(dims.values())):
        told_of = ", ".join(f"{size or 'any number'} of {name}" for name, size in dims.items())
        raise ModelError(
            f"{path} takes {told_of} at once: export it with the same batch for all inputs"
        )
    return OnnxFile(path, model, inputs, fixed.pop() if fixed else None)


def _taken(value: onnx.ValueInfoProto, path: Path, *, alone: bool) -> Taken:
    """What one input is; `alone` where there is no other.

    Raises:
        ModelError: it is not float, nor an image of uint8, or has no batch.
    """
    tensor, name = value.type.tensor_type, value.name
    sizes = [dim.dim_value or None for dim in tensor.shape.dim]
    pixels = tensor.elem_type == _BYTE and alone and len(sizes) == _IMAGE_RANK + 1
    if tensor.elem_type != _FLOAT and not pixels:
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
        whole = kind.startswith(("int", "uint", "bool"))
        if whole:
            raise ModelError(
                f"{path} takes {kind} ({name}): inputs are float32, or one image of uint8; export"
                " the network behind the embedding, mask or conversion that reads it"
            )
        raise ModelError(
            f"{path} takes {kind} ({name}): export the network behind that conversion, so that it"
            " takes float32"
        )
    if len(sizes) < 2:
        raise ModelError(
            f"{path} takes {name} without a batch: every input must be (batch, …), images (batch,"
            " channels, height, width)"
        )
    own = sizes[1:]
    last = len(own) == _IMAGE_RANK and own[2] in _CHANNELS and own[0] not in _CHANNELS
    return Taken(name, (own[2], own[0], own[1]) if last else tuple(own), last, pixels)
