"""ExecuTorch: a program of XNNPACK's integer kernels, for phones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from datafree.config import InputSpec
from datafree.errors import ExportError
from datafree.export._decomposed import decomposed, one_reader_each, stored_bytes
from datafree.export._optional import needed, quiet
from datafree.export._packed import check_bytes
from datafree.export.base import About, Exporter, Written
from datafree.graph.edges import module_of, operator_of
from datafree.graph.outputs import lined_up
from datafree.losses import unpack
from datafree.quant.modules import ActivationQuantizer

_NO_WORK = ("quantize_", "dequantize_", "dim_order_ops")
_LAYERS = ("convolution", "conv1d", "conv2d", "linear", "addmm", "mm")


class Pte(Exporter):
    """ExecuTorch program, lowered to XNNPACK and run by ExecuTorch's own runtime.

    Every convolution and linear layer is computed in integers inside the delegate; a layer that
    XNNPACK does not take is an error that names it.
    """

    suffix: ClassVar[str] = ".pte"
    citation: ClassVar[str] = "ExecuTorch 1.5, XNNPACK backend."
    package: ClassVar[str] = "executorch"
    extra: ClassVar[str] = "executorch"
    targets: ClassVar[tuple[str, ...]] = ("executorch",)

    batch: int = Field(default=1, ge=1)
    """Images that the program takes at a time: its memory is planned for exactly so many."""

    def prepared(self, student: fx.GraphModule) -> fx.GraphModule:
        """Without activation functions that the quantizer behind an addition makes redundant."""
        return _without_clamped_sums(student)

    def write(self, student: fx.GraphModule, spec: InputSpec, path: Path, about: About) -> Written:
        """See `Exporter.write`."""
        exir = self._module("executorch.exir")
        xnnpack = self._module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
        made = decomposed(student)
        try:
            with torch.no_grad(), quiet():
                given = unpack(torch.zeros(self.batch, *spec.shape), spec.inputs)
                program = torch.export.export(made, given, strict=False)
                edge = exir.to_edge_transform_and_lower(
                    one_reader_each(program), partitioner=[xnnpack.XnnpackPartitioner()]
                )
                outside = _outside(edge.exported_program())
                layers = [name for kind, name in outside if kind in _LAYERS]
                if layers:
                    raise ExportError(
                        f"XNNPACK does not take the layer {layers[0]} of this network: choose"
                        " format onnx, or target onnxruntime"
                    )
                content = edge.to_executorch().buffer
        except ExportError:
            raise
        except Exception as error:  # its errors have no common base
            line = next(iter(str(error).splitlines()), type(error).__name__)
            raise ExportError(f"ExecuTorch refuses the student: {line}") from error
        path.write_bytes(content)
        return Written(stored_bytes(made), notes=_notes(outside))

    def verify(self, student: fx.GraphModule, path: Path) -> None:
        """See `Exporter.verify`: codes, scales and biases of all layers are in the file."""
        check_bytes(student, path.read_bytes())

    def run(self, path: Path) -> Callable[..., Tensor]:
        """The file in ExecuTorch's runtime.

        Raises:
            ExportError: it cannot load or run the file.
        """
        runtime = self._module("executorch.runtime").Runtime.get()
        try:
            method = runtime.load_program(str(path)).load_method("forward")
            (batch, *_) = method.metadata.input_tensor_meta(0).sizes()
        except Exception as error:
            raise ExportError(f"ExecuTorch cannot load {path}: {error}") from error

        def padded(tensor: Tensor) -> tuple[Tensor, ...]:
            rest = tensor[:1].expand(-len(tensor) % batch, *tensor.shape[1:])
            return torch.cat([tensor, rest]).float().split(batch)

        def run(*given: Tensor) -> Tensor:
            parts = zip(*map(padded, given), strict=True)
            try:
                found = [
                    lined_up([t.clone() for t in method.execute([t.contiguous() for t in part])])
                    for part in parts
                ]
            except Exception as error:
                raise ExportError(f"ExecuTorch cannot run {path}: {error}") from error
            return torch.cat(found)[: len(given[0])]

        return run

    def _module(self, name: str) -> Any:
        return needed(name, f"{self.suffix} files", self.extra)


def _outside(program: ExportedProgram) -> list[tuple[str, str]]:
    """Operators that no delegate computes: their kinds, and the modules they belong to."""
    found: list[tuple[str, str]] = []
    for node in program.graph.nodes:
        kind = str(getattr(node.target, "__name__", node.target))
        if node.op != "call_function" or kind in ("executorch_call_delegate", "getitem"):
            continue
        stack = node.meta.get("nn_module_stack") or {}
        path = next(reversed(stack.values()), ("", None))[0]
        kind = next((part for part in kind.split(".") if part not in ("aten", "")), kind)
        found.append((kind, path or node.name))
    return found


def _notes(outside: list[tuple[str, str]]) -> tuple[str, ...]:
    """A sentence on what runs on the processor without XNNPACK."""
    kinds = sorted({kind for kind, _ in outside if not kind.startswith(_NO_WORK)})
    if not kinds:
        return ()
    return (f"ExecuTorch computes these in plain float outside XNNPACK: {', '.join(kinds)}.",)


def _without_clamped_sums(student: fx.GraphModule) -> fx.GraphModule:
    """A copy without the clamps between an addition and a quantizer that ends where they do.

    XNNPACK loads a sum with a clamp behind it and then fails when it runs.
    """
    made = copy.deepcopy(student)
    for node in list(made.graph.nodes):
        clamp = module_of(made, node)
        behind = [module_of(made, user) for user in node.users]
        if not isinstance(clamp, nn.Hardtanh) or len(behind) != 1:
            continue
        (source,), quantizer = node.all_input_nodes, behind[0]
        if operator_of(made, source) != "add" or not isinstance(quantizer, ActivationQuantizer):
            continue
        grid, zero, scale = quantizer.grid, float(quantizer.zero_point), float(quantizer.scale)
        low, high = ((code - zero) * scale for code in (grid.qmin, grid.qmax))
        if clamp.min_val <= low and high <= clamp.max_val:
            node.replace_all_uses_with(source)
            made.graph.erase_node(node)
    made.recompile()
    return made
