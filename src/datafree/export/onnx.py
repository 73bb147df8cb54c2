"""ONNX with QuantizeLinear and DequantizeLinear, checked by onnx and run by onnxruntime.

Opset 21 is the first with 4-bit types; IR version 10 belongs to it. Weights of 5 to 8 bits are
stored as int8 or uint8, narrower ones as int4 or uint4, two to a byte. Biases stay float.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import onnx
import onnxruntime
import torch
from pydantic import Field
from torch import Tensor, fx

from datafree.bounds import first_line
from datafree.config import InputSpec
from datafree.errors import ExportError, ParityError
from datafree.export import _qdq
from datafree.export._input import as_bytes, described_input, from_bytes, take_bytes
from datafree.export._kept import keep_apart
from datafree.export._legal import problems
from datafree.export._markers import with_markers
from datafree.export._names import name_after_layers
from datafree.export._parity import compare_outputs, predict
from datafree.export._readback import check_onnx
from datafree.export._saving import ONE_FILE, beside, save
from datafree.export._storage import WeightType
from datafree.export._traced import (
    IR_VERSION,
    OPSET,
    describe,
    strip,
    traced,
)
from datafree.export._unshared import unshared
from datafree.export.base import (
    About,
    Exporter,
    ExportReport,
    Findings,
    Predictor,
    Written,
    check_any_size,
    larger,
    plain_copy,
)
from datafree.graph.chosen import KEPT, kept_in_float
from datafree.graph.fold import fold_into_grids
from datafree.graph.inputs import fed, inputs_of
from datafree.graph.integer import as_computed, float_operators
from datafree.graph.outputs import lined_up, separate
from datafree.graph.settle import rules_of
from datafree.quant.modules import ActivationQuantizer
from datafree.tensors import release_memory

_SATURATED = 1e-4
_OTHER_SIZE = 0.05  # noise that two runs of a float network with other sums stay far below
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

    input_uint8: bool = False
    """Take images as decoders give them, uint8 (batch, height, width, channels) from 0 to 255,
    which the file then normalises itself. Files take normalised float images (batch, channels,
    height, width) otherwise."""
    any_size: bool = False
    """Leave height and width of the images open. Networks that compute with the size of their
    images cannot."""
    external_above: int = Field(default=ONE_FILE, ge=1024, le=ONE_FILE)
    """Bytes of tensors above which they are written to a file of their own beside it."""

    def export(
        self, student: fx.GraphModule, spec: InputSpec, path: Path | str, **options: Any
    ) -> ExportReport:
        """See `Exporter.export`; a file of tensors that nothing refers to any more is removed."""
        path = Path(path)
        replaced, known = beside(path), set(path.parent.glob("*.data"))
        try:
            report = super().export(student, spec, path, **options)
        except BaseException:
            for made in set(path.parent.glob("*.data")) - known:
                made.unlink()
            raise
        for old in replaced - beside(path):
            old.unlink(missing_ok=True)
        return report

    def accepted(self, images: Tensor, spec: InputSpec) -> Tensor:
        """Of images that come as bytes those that bytes can be."""
        return from_bytes(as_bytes(images, spec), spec) if self.input_uint8 else images

    def prepared(self, student: fx.GraphModule) -> fx.GraphModule:
        """Without the batch norms that would keep runtimes from fusing what is around them."""
        return fold_into_grids(student)

    def expected(self, student: fx.GraphModule) -> Predictor:
        """See `Exporter.expected`."""
        return as_computed(student)

    def exact(self, student: fx.GraphModule) -> bool:
        """Where all that is computed between quantizers are whole numbers."""
        return rules_of(student).exact and not float_operators(student)

    def write(self, student: fx.GraphModule, spec: InputSpec, path: Path, about: About) -> Written:
        """See `Exporter.write`."""
        model = traced(with_markers(student), spec, any_size=self.any_size)
        release_memory(student)
        weight_bytes = _qdq.rewrite(model, student, self.weight_type)
        name_after_layers(model)
        kept = kept_in_float(student)
        keep_apart(model, kept)
        strip(model)
        describe(model, spec, {**about, **({KEPT: json.dumps(kept)} if kept else {})})
        if self.input_uint8:
            take_bytes(model, spec)
        _check_legal(model, str(student.meta.get("target", "paper")))
        size = save(model, path, limit=self.external_above)
        whole = size == path.stat().st_size
        try:
            # Shapes cannot be inferred where reshapes read tensors in another file.
            onnx.checker.check_model(str(path), full_check=whole)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ExportError(
                f"the ONNX graph of this network is not valid: {first_line(error)}"
            ) from error
        return Written(weight_bytes, OPSET, bytes=size)

    def verify(self, student: fx.GraphModule, path: Path) -> None:
        """See `Exporter.verify`."""
        check_onnx(onnx.load(path), student)

    def run(self, path: Path) -> Callable[..., Tensor]:
        """The file in onnxruntime on the CPU, with exact integer products.

        Raises:
            ExportError: onnxruntime cannot load or run the file.
        """
        with suppress(ExportError):
            return _session(path, _PRECISE)
        with suppress(Exception):  # the last attempt says what is wrong with the file
            return _session(path, _PRECISE, model=unshared(onnx.load(path)).SerializeToString())
        return _session(path, _PRECISE, _PLAIN)

    def inspect(
        self, student: fx.GraphModule, path: Path, images: Tensor, logits: Tensor
    ) -> Findings:
        """Compare onnxruntime's default with its exact mode, and say what to set."""
        if self.any_size:
            _check_other_size(student, self.run(path), images)
        notes: list[str] = []
        target = str(student.meta.get("target", "paper"))
        if target not in _RUN_HERE:
            suffix = rules_of(student).suffix
            other = f" It loads {suffix} files." * (suffix != ".onnx")
            what = f"This file is for {target}; onnxruntime only checked it.{other}"
            return Findings(False, (what,))
        try:
            default = predict(fed(_session(path), inputs_of(student)), images)
        except ExportError:
            default = logits
            notes.append(
                "onnxruntime's default settings cannot run this file: set"
                f' SessionOptions.add_session_config_entry("{_PLAIN[0]}", "1").'
            )
        saturates = compare_outputs(logits, default).relative > _SATURATED
        if saturates or _qdq.can_saturate(student, self.weight_type):
            where = "On this CPU" if saturates else "On x86 CPUs without VNNI"
            notes.append(
                f"{where} onnxruntime and OpenVINO saturate products of 8-bit weights: quantize"
                " with --bits W7A8, which is exact and as fast on every CPU."
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
    model = traced(separate(plain_copy(network)), spec)
    strip(model)
    model.ir_version = IR_VERSION
    save(model, path)


def _check_legal(model: onnx.ModelProto, target: str) -> None:
    """Refuse a file that its target would refuse, or run otherwise than written."""
    found = problems(model, target)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ExportError(
            f"{target} would not run this file as written: {found[0]}{more}; quantize for"
            f" --target {target} again, or choose target onnxruntime"
        )


def _check_other_size(student: fx.GraphModule, file: Predictor, images: Tensor) -> None:
    """Refuse a file that computes something else where images have another size.

    Raises:
        ParityError: it does.
        ExportError: the student itself cannot take them.
    """
    expected = check_any_size(as_computed(student), images[:4])
    found = compare_outputs(expected, predict(file, larger(images[:4])))
    if found.noise > _OTHER_SIZE:
        raise ParityError(f"with larger images the file computes something else: {found}")


def _session(
    path: Path, *entries: tuple[str, str], model: bytes | None = None
) -> Callable[..., Tensor]:
    """`path`, or a `model` made of it, loaded with these session settings."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    for key, value in entries:
        options.add_session_config_entry(key, value)
    try:
        session = onnxruntime.InferenceSession(
            model or str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its errors have no common base
        raise ExportError(f"onnxruntime cannot load {path}: {first_line(error)}") from error

    takes_bytes = session.get_inputs()[0].type == "tensor(uint8)"
    spec = described_input(session.get_modelmeta().custom_metadata_map) if takes_bytes else None

    names = [value.name for value in session.get_inputs()]

    def run(*tensors: Tensor) -> Tensor:
        given = [t.float().contiguous() if spec is None else as_bytes(t, spec) for t in tensors]
        feeds = {name: t.numpy() for name, t in zip(names, given, strict=True)}
        try:
            found = session.run(None, feeds)
        except Exception as error:
            raise ExportError(f"onnxruntime cannot run {path}: {first_line(error)}") from error
        return lined_up([torch.from_numpy(tensor) for tensor in found])

    return run
