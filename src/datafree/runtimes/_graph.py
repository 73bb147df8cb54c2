"""An ONNX graph, read the way a runtime does: who makes a tensor, who reads it, what is constant.

Nothing here depends on who wrote the file.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from datafree.errors import InferenceError
from datafree.runtimes._timing import Given

CONVOLUTIONS = ("Conv", "ConvTranspose")
RECURRENT = ("LSTM", "GRU", "RNN")
PRODUCTS = ("Gemm", "MatMul")
LAYERS = (*CONVOLUTIONS, *PRODUCTS, *RECURRENT, "ConvInteger", "MatMulInteger")
# Operators that only move or select values: codes pass through them.
_MOVERS = (
    "Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose",
    "Unsqueeze", "Expand", "Pad",
)  # fmt: skip
_KEPT = "keep_float"  # property of datafree's files
_TAG = re.compile(r"@(\d+)@")
_TORCH_NAME = re.compile(r"(node_.*)?")  # what torch's exporter calls a node says nothing
_WEIGHT_NAME = re.compile(r"(.+)[._]weight(_\w+)?")


@dataclass(frozen=True)
class Codes:
    """What a QuantizeLinear or DequantizeLinear does.

    Attributes:
        kind: type of the codes, as in `onnx.TensorProto`.
        scale: one number or one per channel; None where it is not constant.
        zero: zero points, as many; None where they are not constant.
        clipped: codes pass a Clip before they are read.
        cast: codes are stored in a narrower type and widened by a Cast.
    """

    kind: int
    scale: NDArray[Any] | None
    zero: NDArray[Any] | None
    clipped: bool = False
    cast: bool = False

    @property
    def type_name(self) -> str:
        """Such as `int8`."""
        return TensorProto.DataType.Name(self.kind).lower()

    @property
    def lowest(self) -> int:
        """The lowest code of the type."""
        bits = int(re.sub(r"\D", "", self.type_name) or 8)
        return 0 if self.type_name.startswith("u") else -(2 ** (bits - 1))

    @property
    def bits(self) -> int:
        """Bits of the type."""
        return int(re.sub(r"\D", "", self.type_name) or 8)


class Graph:
    """The main graph of an ONNX file; its nodes are known by their index."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Read `model`, which is not changed."""
        self.model = model
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.outputs = {value.name for value in model.graph.output}
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.maker = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self.readers: dict[str, list[int]] = {}
        for i, node in enumerate(self.nodes):
            for name in _read(node):
                self.readers.setdefault(name, []).append(i)

    @cached_property
    def constants(self) -> frozenset[str]:
        """Tensors that depend on no input of the network."""
        found = set(self.initializers)
        for node in self.nodes:
            named = [name for name in node.input if name]
            if node.op_type == "Constant" or (named and found.issuperset(named)):
                found.update(node.output)
        return frozenset(found)

    def made_by(self, name: str) -> NodeProto | None:
        """The node whose output is tensor `name`; None for inputs and initializers."""
        index = self.maker.get(name)
        return None if index is None else self.nodes[index]

    def read_by(self, name: str) -> list[NodeProto]:
        """The nodes that read tensor `name`."""
        return [self.nodes[i] for i in self.readers.get(name, ())]

    def value(self, name: str) -> NDArray[Any] | None:
        """The value of tensor `name` where it stands in the file."""
        if name in self.initializers:
            return np.asarray(numpy_helper.to_array(self.initializers[name]))
        node = self.made_by(name)
        if node is not None and node.op_type == "Constant":
            given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            if "value" in given:
                return np.asarray(numpy_helper.to_array(given["value"]))
        return None

    def layers(self) -> list[int]:
        """Convolutions, products and recurrent layers that have weights."""
        return [
            i
            for i, node in enumerate(self.nodes)
            if node.op_type in LAYERS and self.weight_of(node) is not None
        ]

    def products(self) -> list[int]:
        """Matrix products of two activations, as in attention."""
        return [
            i
            for i, node in enumerate(self.nodes)
            if node.op_type in PRODUCTS and self.weight_of(node) is None
        ]

    def weight_of(self, node: NodeProto) -> str | None:
        """The constant operand of a layer, None where there is none."""
        operands = list(node.input[1:2] if node.op_type in CONVOLUTIONS else node.input[:2])
        if node.op_type in CONVOLUTIONS or node.op_type in RECURRENT:
            return node.input[1]
        constant = [name for name in reversed(operands) if name in self.constants]
        return constant[0] if constant else None

    def input_of(self, node: NodeProto) -> str:
        """The operand of a layer that is no weight."""
        weight = self.weight_of(node)
        return next((name for name in node.input[:2] if name != weight), node.input[0])

    def dequantizer(self, name: str) -> NodeProto | None:
        """The DequantizeLinear that `name` comes from, through what only moves values."""
        for _ in range(len(self.nodes)):
            node = self.made_by(name)
            if node is None or node.op_type == "DequantizeLinear":
                return node
            if node.op_type not in _MOVERS:
                return None
            name = node.input[0]
        return None

    def codes(self, node: NodeProto) -> Codes:
        """What a QuantizeLinear or DequantizeLinear does."""
        zero = node.input[2] if len(node.input) > 2 else ""
        scale = self.value(node.input[1])
        zeros = self.value(zero) if zero else np.zeros((), np.int64)
        if node.op_type == "QuantizeLinear":
            return Codes(self._kind(zero) or TensorProto.UINT8, scale, zeros)
        source, clipped, cast = node.input[0], False, False
        kind = self._kind(zero)
        while (maker := self.made_by(source)) is not None:
            if maker.op_type == "QuantizeLinear":
                kind = kind or self.codes(maker).kind
                break
            clipped |= maker.op_type == "Clip"
            if maker.op_type == "Cast":
                cast = True
                to = next(int(a.i) for a in maker.attribute if a.name == "to")
                kind = kind or to
            if maker.op_type not in ("Clip", "Cast", *_MOVERS):
                break
            source = maker.input[0]
        kind = kind or self._kind(source) or TensorProto.UINT8
        return Codes(kind, scale, zeros, clipped, cast)

    def filters(self, node: NodeProto) -> int | None:
        """Output channels of a convolution; None where its weight is made by what is not known."""
        name: str | None = node.input[1]
        while name is not None:
            if name in self.initializers:
                return int(self.initializers[name].dims[0])
            maker = self.made_by(name)
            name = maker.input[0] if maker is not None and maker.input else None
        return None

    def input_shape(self) -> list[int | None]:
        """Of the network's input as (B, C, H, W), or as it is; None for what the file leaves open.

        Of several inputs that of the first.

        Raises:
            InferenceError: the network has no input.
        """
        sizes = _sizes(self._inputs()[0])
        return [sizes[0], sizes[-1], *sizes[1:-1]] if self.takes_bytes else sizes

    @property
    def takes_bytes(self) -> bool:
        """Whether the input is uint8, channels last, instead of normalised images."""
        return self._inputs()[0].type.tensor_type.elem_type == TensorProto.UINT8

    def given(self, images: NDArray[np.float32]) -> Given:
        """Images (B, C, H, W) in the form of the input; values do not matter, times do.

        Where the file takes something else than images, B items of that.

        Raises:
            InferenceError: it does and leaves their shape open.
        """
        inputs = self._inputs()
        if self.takes_bytes:
            pixels = np.clip(64 * images + 128, 0, 255).astype(np.uint8)
            return np.ascontiguousarray(np.moveaxis(pixels, 1, -1))
        if len(inputs) == 1 and len(_sizes(inputs[0])) == images.ndim:
            return images
        random = np.random.default_rng(0)
        drawn: dict[str, NDArray[Any]] = {}
        for value in inputs:
            sizes = [size for size in _sizes(value)[1:] if size is not None]
            if len(sizes) < len(_sizes(value)) - 1:
                raise InferenceError(
                    f"the file does not say what shape its input {value.name} has: export it with"
                    " that shape fixed"
                )
            drawn[value.name] = random.standard_normal((len(images), *sizes), dtype=np.float32)
        return drawn if len(drawn) > 1 else next(iter(drawn.values()))

    @cached_property
    def kept(self) -> frozenset[str]:
        """Layers that the file says were asked to stay in float."""
        told = next((p.value for p in self.model.metadata_props if p.key == _KEPT), "[]")
        try:
            return frozenset(map(str, json.loads(told)))
        except (ValueError, TypeError):  # of a file that is not datafree's
            return frozenset()

    def is_kept(self, node: NodeProto) -> bool:
        """Whether a layer was asked to stay in float."""
        path = self.label(node).partition("#")[0]
        return path in self.kept or path.rpartition("/")[0] in self.kept

    def _inputs(self) -> list[ValueInfoProto]:
        """The inputs that are no weights."""
        inputs = [v for v in self.model.graph.input if v.name not in self.initializers]
        if not inputs:
            raise InferenceError("the network in this file has no input: export it with one")
        return inputs

    def input_codes(self, node: NodeProto) -> Codes | None:
        """Codes that the input of a layer comes from; None where it is not quantized."""
        found = self.dequantizer(self.input_of(node))
        return None if found is None else self.codes(found)

    def weight_codes(self, node: NodeProto) -> Codes | None:
        """Codes that the weights of a layer come from; None where they are not quantized."""
        found = self.dequantizer(self.weight_of(node) or "")
        return None if found is None else self.codes(found)

    def _kind(self, name: str) -> int:
        """Element type of an initializer, 0 where `name` is none."""
        tensor = self.initializers.get(name)
        return 0 if tensor is None else int(tensor.data_type)

    def label(self, node: NodeProto) -> str:
        """What people call a node: its name, or its weight's where torch made the name up."""
        if not _TORCH_NAME.fullmatch(node.name):
            return node.name
        name = self.weight_of(node) if node.op_type in LAYERS else None
        while name is not None:
            if found := _WEIGHT_NAME.fullmatch(name):
                return found[1]
            maker = self.made_by(name)
            name = maker.input[0] if maker is not None and maker.input else None
        return node.name or node.output[0]


def _sizes(value: ValueInfoProto) -> list[int | None]:
    """Sizes of an input; None for what the file leaves open."""
    dims = value.type.tensor_type.shape.dim
    return [int(d.dim_value) if d.dim_value > 0 else None for d in dims]


def load_graph(path: Path) -> Graph:
    """The graph of the file at `path`.

    Raises:
        InferenceError: there is no file, or it is not ONNX.
    """
    try:
        model = onnx.load(path)
    except OSError as error:
        raise InferenceError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # protobuf's own errors have no common base
        raise InferenceError(f"{path} is not an ONNX file: give one, or a run's folder") from error
    if not model.graph.node:
        raise InferenceError(f"{path} is not an ONNX file: give one, or a run's folder")
    return Graph(model)


def tagged(graph: Graph) -> onnx.ModelProto:
    """A copy in which every node and every tensor it makes is named ``@index@``.

    Names of a file can be missing or shared, and runtimes put their own around them. From these
    `tags` reads back which nodes of the file a kernel stands for.
    """
    model = copy.deepcopy(graph.model)
    names: dict[str, str] = {}
    for i, node in enumerate(model.graph.node):
        node.name = f"@{i}@"
        names.update({name: f"@{i}@{k}" for k, name in enumerate(node.output) if name})
    _rename(model.graph.node, names)
    for value in model.graph.output:
        value.name = names.get(value.name, value.name)
    del model.graph.value_info[:]
    return model


def tags(*names: str) -> frozenset[int]:
    """Indices of the nodes that `tagged` names speak of."""
    return frozenset(int(found) for name in names for found in _TAG.findall(name))


def _read(node: NodeProto) -> set[str]:
    """Tensors a node reads, those its branches and loop bodies read included."""
    found = {name for name in node.input if name}
    for attribute in node.attribute:
        for inner in attribute.g.node:
            found |= _read(inner)
    return found


def _rename(nodes: Iterable[NodeProto], names: dict[str, str]) -> None:
    for node in nodes:
        for given in (node.input, node.output):
            for k, name in enumerate(given):
                given[k] = names.get(name, name)
        for attribute in node.attribute:
            _rename(attribute.g.node, names)
            for value in attribute.g.output:
                value.name = names.get(value.name, value.name)
