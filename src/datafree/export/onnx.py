"""ONNX with QuantizeLinear and DequantizeLinear, checked by onnx and run by onnxruntime.

Opset 21 is the first with 4-bit types; IR version 10 belongs to it. Weights of 5 to 8 bits are
stored as int8 or uint8, narrower ones as int4 or uint4, two to a byte. Biases stay float.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import onnx
import onnxruntime
import torch
from torch import Tensor, fx

from datafree.config import InputSpec
from datafree.errors import ExportError
from datafree.export import _qdq
from datafree.export._legal import problems
from datafree.export._markers import with_markers
from datafree.export._names import name_after_layers
from datafree.export._storage import WeightType
from datafree.export._traced import (
    INPUT,
    IR_VERSION,
    OPSET,
    OUTPUT,
    describe,
    first_line,
    strip,
    traced,
)
from datafree.export.base import (
    Exporter,
    Findings,
    Predictor,
    Written,
    compare_logits,
    plain_copy,
    predict,
)
from datafree.graph.fold import fold_into_grids
from datafree.graph.integer import as_computed, float_operators
from datafree.graph.settle import rules_of
from datafree.quant.modules import ActivationQuantizer

_SATURATED = 1e-4
_RUN_HERE = ("onnxruntime", "openvino", "paper")  # targets that onnxruntime's settings matter to
_PRECISE = ("session.x64quantprecision", "1")
_PLAIN = ("session.disable_quant_qdq", "1")


class Onnx(Exporter):
    """ONNX file for onnxruntime and others."""

    suffix: ClassVar[str] = ".onnx"
    citation: ClassVar[str] = "ONNX, opset 21: QuantizeLinear and DequantizeLinear."

    weight_type: WeightType = "auto"
    """Integers that hold the weights: `int8` signed, `uint8` unsigned (4-bit types likewise),
    `auto` as the scheme has them, unsigned for affine grids and signed for symmetric ones. The
    choice shifts codes and zero point alike and changes no value. Unsigned weights are exact on
    every CPU; signed ones saturate in onnxruntime's default on x86 CPUs without VNNI."""

    def prepared(self, student: fx.GraphModule) -> fx.GraphModule:
        """Without the batch norms that would keep runtimes from fusing what is around them."""
        return fold_into_grids(student)

    def expected(self, student: fx.GraphModule) -> Predictor:
        """See `Exporter.expected`."""
        return as_computed(student)

    def exact(self, student: fx.GraphModule) -> bool:
        """Where all that is computed between quantizers are whole numbers."""
        return rules_of(student).exact and not float_operators(student)

    def write(self, student: fx.GraphModule, spec: InputSpec, path: Path, label: str) -> Written:
        """See `Exporter.write`."""
        model = traced(with_markers(student), spec)
        weight_bytes = _qdq.rewrite(model, student, self.weight_type)
        name_after_layers(model)
        strip(model)
        describe(model, spec, label)
        try:
            onnx.checker.check_model(model, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ExportError(
                f"the ONNX graph of this network is not valid: {first_line(error)}"
            ) from error
        _check_legal(model, str(student.meta.get("target", "paper")))
        path.write_bytes(model.SerializeToString(deterministic=True))
        return Written(weight_bytes, OPSET)

    def run(self, path: Path) -> Predictor:
        """The file in onnxruntime on the CPU, with exact integer products.

        Raises:
            ExportError: onnxruntime cannot load or run the file.
        """
        try:
            return _session(path, _PRECISE)
        except ExportError:
            return _session(path, _PRECISE, _PLAIN)

    def inspect(
        self, student: fx.GraphModule, path: Path, images: Tensor, logits: Tensor
    ) -> Findings:
        """Compare onnxruntime's default with its exact mode, and say what to set."""
        notes: list[str] = []
        target = str(student.meta.get("target", "paper"))
        if target not in _RUN_HERE:
            suffix = rules_of(student).suffix
            other = f" It loads {suffix} files: datafree export writes one." * (suffix != ".onnx")
            what = f"This file is for {target}; onnxruntime only checked it.{other}"
            return Findings(False, (what,))
        try:
            default = predict(_session(path), images)
        except ExportError:
            default = logits
            notes.append(
                "onnxruntime's default settings cannot run this file: set"
                f' SessionOptions.add_session_config_entry("{_PLAIN[0]}", "1").'
            )
        saturates = compare_logits(logits, default).relative > _SATURATED
        if saturates or _qdq.can_saturate(student, self.weight_type):
            where = "On this CPU" if saturates else "On x86 CPUs without VNNI"
            notes.append(
                f"{where} onnxruntime saturates products of 8-bit weights: quantize with --bits"
                " W7A8, which is exact and as fast on every CPU."
            )
        quantized = any(isinstance(m, ActivationQuantizer) for m in student.modules())
        if quantized and rules_of(student).placement != "every_edge":
            notes.append(
                "Quantizers stand where papers have them, so that most layers run in float: it"
                " saves size, not time; --target onnxruntime makes them integer."
            )
        return Findings(saturates, tuple(notes))


def write_float(network: fx.GraphModule, spec: InputSpec, path: Path) -> None:
    """Write a float network as ONNX, the way students are written but for their quantizers.

    Args:
        network: in eval mode, on any device; not changed.
        spec: its input.
        path: file to write.

    Raises:
        ExportError: ONNX cannot express the network.
    """
    model = traced(plain_copy(network), spec)
    strip(model)
    model.ir_version = IR_VERSION
    path.write_bytes(model.SerializeToString(deterministic=True))


def _check_legal(model: onnx.ModelProto, target: str) -> None:
    """Refuse a file that its target would refuse, or run otherwise than written."""
    found = problems(model, target)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ExportError(
            f"{target} would not run this file as written: {found[0]}{more}; quantize for"
            f" --target {target} again, or choose target onnxruntime"
        )


def _session(path: Path, *entries: tuple[str, str]) -> Predictor:
    """`path` loaded with these session settings."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    for key, value in entries:
        options.add_session_config_entry(key, value)
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its errors have no common base
        raise ExportError(f"onnxruntime cannot load {path}: {first_line(error)}") from error

    def run(images: Tensor) -> Tensor:
        try:
            (logits,) = session.run([OUTPUT], {INPUT: images.float().contiguous().numpy()})
        except Exception as error:
            raise ExportError(f"onnxruntime cannot run {path}: {first_line(error)}") from error
        return torch.from_numpy(logits)

    return run
