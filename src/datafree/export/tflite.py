"""LiteRT: an integer model for phones and microcontrollers, by LiteRT's own converter."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, fx

from datafree.config import InputSpec
from datafree.errors import ExportError
from datafree.export._decomposed import decomposed, rounded_bytes
from datafree.export._optional import needed, quiet
from datafree.export._packed import Held, check_layers
from datafree.export.base import About, Exporter, Predictor, Written
from datafree.graph.outputs import lined_up
from datafree.losses import unpack

_LAYERS = frozenset(("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"))


class Tflite(Exporter):
    """LiteRT (TensorFlow Lite) model of int8 operators, run by LiteRT's interpreter.

    Input and output are int8 with the student's scales; the input's memory order is (N, C, H, W).
    A convolution or linear layer that the converter leaves in float is an error that names it.
    """

    suffix: ClassVar[str] = ".tflite"
    citation: ClassVar[str] = "LiteRT 8-bit quantization specification."
    package: ClassVar[str] = "litert_torch"
    extra: ClassVar[str] = "litert"
    targets: ClassVar[tuple[str, ...]] = ("litert",)

    def write(self, student: fx.GraphModule, spec: InputSpec, path: Path, about: About) -> Written:
        """See `Exporter.write`."""
        litert = self._module("litert_torch")
        quantizer = self._module("litert_torch.quantize.pt2e_quantizer")
        options = self._module("litert_torch.quantize.quant_config")
        # Without it the converter leaves all in float between QUANTIZE and DEQUANTIZE.
        rules = quantizer.PT2EQuantizer().set_global(
            quantizer.get_symmetric_quantization_config(is_per_channel=True)
        )
        if len(spec.inputs) > 1:
            raise ExportError(
                ".tflite files are written of networks of one input, and this one takes"
                f" {', '.join(one.name for one in spec.inputs)}: choose format onnx, or target"
                " onnxruntime"
            )
        made = decomposed(student, stored=False)
        try:
            with quiet():
                model = litert.convert(
                    made.eval(),
                    unpack(torch.zeros(1, *spec.shape), spec.inputs),
                    quant_config=options.QuantConfig(pt2e_quantizer=rules),
                )
                # It insists on the suffix.
                named = path.with_name(f"{path.name}{self.suffix}")
                model.export(str(named))
                named.replace(path)
        except Exception as error:  # its errors have no common base
            line = next(iter(str(error).splitlines()), type(error).__name__)
            raise ExportError(f"the LiteRT converter refuses the student: {line}") from error
        floats = _float_layers(self._interpreter(path))
        if floats:
            raise ExportError(
                f"the LiteRT converter left {floats[0]} in float: choose format onnx, or target"
                " onnxruntime"
            )
        return Written(rounded_bytes(made))

    def verify(self, student: fx.GraphModule, path: Path) -> None:
        """See `Exporter.verify`: codes, scales and biases of all layers."""
        check_layers(student, _held(self._interpreter(path)))

    def run(self, path: Path) -> Predictor:
        """The file in LiteRT's interpreter.

        Raises:
            ExportError: it cannot load or run the file.
        """
        interpreter = self._interpreter(path)
        (source,), results = interpreter.get_input_details(), interpreter.get_output_details()

        def one(image: Tensor) -> Tensor:
            values = image[None].float().numpy()
            scale, zero = source["quantization"]
            if source["dtype"] == np.int8:
                codes = np.rint(values / np.float32(scale)) + zero
                values = np.clip(codes, -128, 127).astype(np.int8)
            interpreter.set_tensor(source["index"], values)
            interpreter.invoke()
            return lined_up([returned(result) for result in results])

        def returned(result: Any) -> Tensor:
            found = interpreter.get_tensor(result["index"])
            scale, zero = result["quantization"]
            if result["dtype"] == np.int8:
                found = (found.astype(np.float32) - zero) * np.float32(scale)
            return torch.from_numpy(np.array(found))

        def run(images: Tensor) -> Tensor:
            try:
                return torch.cat([one(image) for image in images])
            except Exception as error:
                raise ExportError(f"LiteRT cannot run {path}: {error}") from error

        return run

    def _interpreter(self, path: Path) -> Any:
        kind = self._module("ai_edge_litert.interpreter").Interpreter
        try:
            interpreter = kind(model_content=path.read_bytes(), num_threads=1)
            interpreter.allocate_tensors()
        except Exception as error:
            raise ExportError(f"LiteRT cannot load {path}: {error}") from error
        return interpreter

    def _module(self, name: str) -> Any:
        return needed(name, f"{self.suffix} files", self.extra)


def _float_layers(interpreter: Any) -> list[str]:
    """Names of the outputs of layers that compute in float."""
    tensors = {tensor["index"]: tensor for tensor in interpreter.get_tensor_details()}
    return [
        str(tensors[operator["outputs"][0]]["name"])
        for operator in interpreter._get_ops_details()
        if operator["op_name"] in _LAYERS
        and any(tensors[i]["dtype"] != np.int8 for i in operator["inputs"][:2])
    ]


def _held(interpreter: Any) -> list[Held]:
    """The layers of a file as it keeps them."""
    tensors = {tensor["index"]: tensor for tensor in interpreter.get_tensor_details()}
    found: list[Held] = []
    for operator in interpreter._get_ops_details():
        if operator["op_name"] not in _LAYERS:
            continue
        _, weight, *rest = operator["inputs"]
        scales, zeros = (
            torch.tensor(np.asarray(tensors[weight]["quantization_parameters"][key]))
            for key in ("scales", "zero_points")
        )
        codes = torch.from_numpy(interpreter.get_tensor(weight).astype(np.float32))
        bias, step = None, torch.zeros(1)
        if rest and rest[0] >= 0:
            step = torch.tensor(np.asarray(tensors[rest[0]]["quantization_parameters"]["scales"]))
            values = interpreter.get_tensor(rest[0]).astype(np.float64).ravel()
            bias = torch.from_numpy(values) * step.double()
        # The specification's weights are symmetric: all of their zero points are 0.
        found.append(Held(codes - zeros.float().max(), scales.float(), bias, step.double()))
    return found
