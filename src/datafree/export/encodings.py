"""Encodings as AIMET writes them: numbers of tensors, beside the float ONNX network they are in."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, fx

from datafree.bounds import first_line
from datafree.config import InputSpec
from datafree.errors import ExportError
from datafree.export._differs import Differs
from datafree.export._markers import DOMAIN, with_markers
from datafree.export._readback import check_state, quantized_layers
from datafree.export._traced import INPUT, OPSET, describe, strip, traced
from datafree.export.base import About, Exporter, ExportReport, Predictor, Written
from datafree.files import TEMPORARY, refuse_existing
from datafree.graph.fold import fold_into_grids
from datafree.graph.outputs import lined_up
from datafree.quant.modules import QUANTIZED, ActivationQuantizer, Quantizer

_VERSION = "0.6.1"
Entries = dict[str, list[dict[str, Any]]]


class Encodings(Exporter):
    """AIMET encodings (JSON), with the float network as `.onnx` of the same name beside it.

    Qualcomm's converters read both: the network, and the file as ``--quantization_overrides``. An
    entry has `bitwidth`, `scale`, `offset` (the smallest code), `min` and `max`; ``value = scale *
    (code + offset)`` with codes from 0. It is checked by rounding the float network by the file.
    """

    suffix: ClassVar[str] = ".encodings"
    citation: ClassVar[str] = "AIMET's encoding format 0.6.1, read by QNN's converters."

    def export(
        self, student: fx.GraphModule, spec: InputSpec, path: Path | str, *, force: bool = False,
        **options: Any,
    ) -> ExportReport:  # fmt: skip
        """See `Exporter.export`; the float network goes to `path` with the suffix `.onnx`.

        Raises:
            OutputExistsError: either file exists and `force` is not set.
        """
        path = Path(path)
        beside = _network(path)
        refuse_existing(beside, force=force)
        try:
            report = super().export(student, spec, path, force=force, **options)
            (written,) = path.parent.glob(f"{TEMPORARY}{path.stem}-*.onnx")
            written.replace(beside)
        finally:
            for rest in path.parent.glob(f"{TEMPORARY}{path.stem}-*.onnx"):
                rest.unlink()
        return report

    def prepared(self, student: fx.GraphModule) -> fx.GraphModule:
        """Without batch norms, as for ONNX."""
        return fold_into_grids(student)

    def write(self, student: fx.GraphModule, spec: InputSpec, path: Path, about: About) -> Written:
        """See `Exporter.write`."""
        model = traced(with_markers(student), spec)
        activations, parameters = _without_markers(model, student)
        strip(model)
        describe(model, spec, about)
        _network(path).write_bytes(model.SerializeToString(deterministic=True))
        told = {
            "version": _VERSION,
            "activation_encodings": activations,
            "param_encodings": parameters,
        }
        path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        layers = [m for m in student.modules() if isinstance(m, QUANTIZED)]
        return Written(sum(4 * m.weight.numel() for m in layers), OPSET)

    def verify(self, student: fx.GraphModule, path: Path) -> None:
        """See `Exporter.verify`: the rounded weights, the biases, the grids of activations."""
        told = json.loads(path.read_text(encoding="utf-8"))
        layers = quantized_layers(student)
        for name, layer in layers.items():
            if told["param_encodings"].get(f"{name}.weight") != _entries(layer.weight_quantizer):
                raise Differs(f"the encodings of the weight of {name}", "scale, offset or width")
        grids = list(told["activation_encodings"].values())
        quantizers = {
            name: module
            for name, module in student.named_modules()
            if isinstance(module, ActivationQuantizer) and module.enabled
        }
        for name, module in quantizers.items():
            if _entries(module) not in grids:
                raise Differs(f"the encodings of {name}", f"none is {_entries(module)[0]}")
        model = rounded(onnx.load(_network(path)), told)
        stored = {
            tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy())
            for tensor in model.graph.initializer
        }
        for name, layer in layers.items():
            held = {f"{name}.weight": layer.weight_quantizer(layer.weight.detach())}
            if layer.bias is not None:
                held[f"{name}.bias"] = layer.bias.detach()
            check_state(held, stored)

    def run(self, path: Path) -> Predictor:
        """The float network rounded by the encodings, nothing else, in onnxruntime.

        Raises:
            ExportError: the files do not fit.
        """
        model = rounded(onnx.load(_network(path)), json.loads(path.read_text(encoding="utf-8")))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors have no common base
            raise ExportError(f"onnxruntime cannot load {path}: {first_line(error)}") from error

        def run(images: Tensor) -> Tensor:
            found = session.run(None, {INPUT: images.float().contiguous().numpy()})
            return lined_up([torch.from_numpy(tensor) for tensor in found])

        return run


def rounded(model: onnx.ModelProto, told: dict[str, Any]) -> onnx.ModelProto:
    """A copy of the float network `model` whose tensors are rounded as `told` says.

    Raises:
        ExportError: an encoding names no tensor of the network.
    """
    made = copy.deepcopy(model)
    graph = made.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for name, entries in cast("Entries", told["param_encodings"]).items():
        if name not in weights:
            raise ExportError(f"the network has no weight {name}, which the encodings name")
        values = _rounded(numpy_helper.to_array(weights[name]), entries)
        weights[name].CopyFrom(numpy_helper.from_array(values, name))
    for name, (entry,) in cast("Entries", told["activation_encodings"]).items():
        _round_behind(graph, name, entry)
    return made


def _rounded(values: NDArray[np.float32], entries: list[dict[str, Any]]) -> NDArray[np.float32]:
    """A weight on its grids; several entries are those of its output channels."""
    shape = (-1, *[1] * (values.ndim - 1)) if len(entries) > 1 else ()
    scale, offset, bits = (
        np.asarray([entry[key] for entry in entries], np.float32).reshape(shape)
        for key in ("scale", "offset", "bitwidth")
    )
    codes = np.clip(np.rint(values / scale) - offset, 0, 2**bits - 1)
    return ((codes + offset) * scale).astype(np.float32)


def _round_behind(graph: onnx.GraphProto, name: str, entry: dict[str, Any]) -> None:
    """Let everyone who reads the tensor `name` read it rounded."""
    places = [i for i, node in enumerate(graph.node) if name in node.output]
    if not places and name not in {value.name for value in graph.input}:
        raise ExportError(f"the network has no tensor {name}, which the encodings name")
    is_result = name in {value.name for value in graph.output}
    source, output = (f"{name}/float", name) if is_result else (name, f"{name}/rounded")
    for node in graph.node:
        for i, read in enumerate(node.input):
            node.input[i] = output if read == name else read
    if is_result:
        node = graph.node[places[0]]
        node.output[list(node.output).index(name)] = source
    numbers = {
        "scale": np.float32(entry["scale"]),
        "zero": np.uint8(-entry["offset"]),
        "low": np.uint8(0),
        "high": np.uint8(2 ** entry["bitwidth"] - 1),
    }
    read = {key: f"{name}/{key}" for key in numbers}
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), read[key]) for key, value in numbers.items()
    )
    made = [
        helper.make_node("QuantizeLinear", [source, read["scale"], read["zero"]], [f"{name}/q"]),
        helper.make_node("Clip", [f"{name}/q", read["low"], read["high"]], [f"{name}/c"]),
        helper.make_node("DequantizeLinear", [f"{name}/c", read["scale"], read["zero"]], [output]),
    ]
    at = places[0] + 1 if places else 0
    nodes = [*graph.node[:at], *made, *graph.node[at:]]
    del graph.node[:]
    graph.node.extend(nodes)


def _without_markers(model: onnx.ModelProto, student: fx.GraphModule) -> tuple[Entries, Entries]:
    """Take the markers out of `model`, in place; what they stood for, by the names of tensors."""
    graph = model.graph
    activations: Entries = {}
    parameters: Entries = {}
    same: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    results = {value.name for value in graph.output}
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = same.get(name, name)
        if node.domain != DOMAIN:
            nodes.append(node)
            continue
        path = next(a.s.decode() for a in node.attribute if a.name == "path")
        module = student.get_submodule(path)
        (source,), (output,) = node.input, node.output
        if isinstance(module, QUANTIZED):
            parameters[source] = _entries(module.weight_quantizer)
        elif isinstance(module, Quantizer):
            if output in results:
                _rename(nodes, source, output)
                same[source] = source = output
            activations[source] = _entries(module)
        same[output] = source
    del graph.node[:]
    graph.node.extend(nodes)
    for opset in [opset for opset in model.opset_import if opset.domain == DOMAIN]:
        model.opset_import.remove(opset)
    return activations, parameters


def _rename(nodes: list[onnx.NodeProto], source: str, result: str) -> None:
    """Give the tensor `source` the name of the result that it is."""
    for node in nodes:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = result if name == source else name


def _entries(quantizer: Quantizer) -> list[dict[str, Any]]:
    """One entry for every scale of a quantizer; codes from 0."""
    grid = quantizer.grid
    scales = quantizer.scale.reshape(-1).tolist()
    zeros = quantizer.zero_point.reshape(-1).tolist()
    # A narrow grid leaves out its smallest code, which the format counts.
    lowest = grid.qmin - grid.narrow
    offsets = [int(lowest - zero) for zero in zeros]
    return [
        {
            "bitwidth": grid.bits,
            "dtype": "int",
            "is_symmetric": str(grid.symmetric and grid.signed),
            "max": scale * (offset + 2**grid.bits - 1),
            "min": scale * offset,
            "offset": offset,
            "scale": scale,
        }
        for scale, offset in zip(scales, offsets, strict=True)
    ]


def _network(path: Path) -> Path:
    return path.with_suffix(".onnx")
