"""The student for PyTorch's PT2E backends: int8 codes between quantize and dequantize operators."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, fx

from datafree.config import InputSpec
from datafree.errors import ExportError
from datafree.export._decomposed import decomposed, stored_bytes, stored_state
from datafree.export._readback import check_state
from datafree.export.base import About, Exporter, Written, trace
from datafree.graph.outputs import lined_up


class Pt2e(Exporter):
    """`torch.export` archive with ``quantized_decomposed`` operators, for PT2E backends.

    ``torch.export.load(FILE)`` gives the program that `prepare_pt2e` and `convert_pt2e` would have
    made, ready to be lowered; import ``torch.ao.quantization.fx._decomposed`` before, which has
    the operators. Weights are int8.
    """

    suffix: ClassVar[str] = ".pt2e"
    citation: ClassVar[str] = "PyTorch 2 Export quantization; quantized_decomposed operators."

    def write(self, student: fx.GraphModule, spec: InputSpec, path: Path, about: About) -> Written:
        """See `Exporter.write`."""
        made = decomposed(student)
        try:
            program = trace(made, spec)
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)  # paths of this machine
            archive = io.BytesIO()
            torch.export.save(program, archive, extra_files=dict(about))
        except Exception as error:
            line = next(iter(str(error).splitlines()), type(error).__name__)
            raise ExportError(f"torch.export refuses the student: {line}") from error
        path.write_bytes(archive.getbuffer())
        return Written(stored_bytes(made))

    def verify(self, student: fx.GraphModule, path: Path) -> None:
        """See `Exporter.verify`: codes, scales, zero points and biases of all layers."""
        program = torch.export.load(io.BytesIO(path.read_bytes()))
        check_state(stored_state(student), program.state_dict | program.constants)

    def run(self, path: Path) -> Callable[..., Tensor]:
        """The file loaded by torch, which is safe only for files one has written oneself."""
        # By its suffix torch would take a path for another kind of archive.
        module = torch.export.load(io.BytesIO(path.read_bytes())).module()

        def run(*given: Tensor) -> Tensor:
            return lined_up(module(*given))

        return run
