"""PyTorch's own archive: the student as a `torch.export` program, which loads without its code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO, ClassVar, cast

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from datafree.config import InputSpec
from datafree.errors import ExportError, ParityError
from datafree.export._parity import Parity
from datafree.export._readback import check_state
from datafree.export.base import (
    About,
    Exporter,
    Written,
    float_weight_bytes,
    trace,
)
from datafree.files import Sink
from datafree.graph.capture import impersonal
from datafree.graph.outputs import lined_up


class Pt2(Exporter):
    """`.pt2` file: float weights and fake quantization, bit for bit what the student computes."""

    suffix: ClassVar[str] = ".pt2"
    citation: ClassVar[str] = "PyTorch's torch.export archive."

    def write(self, student: fx.GraphModule, spec: InputSpec, path: Path, about: About) -> Written:
        """See `Exporter.write`."""
        try:
            program = trace(student, spec)
            impersonal(program)
            # A path would put its own, temporary, name into the archive.
            with path.open("wb") as file:
                archive = Sink(file)
                torch.export.save(program, cast("IO[bytes]", archive), extra_files=dict(about))
                archive.flush()
        except OSError:
            raise
        except Exception as error:
            line = next(iter(str(error).splitlines()), type(error).__name__)
            raise ExportError(f"torch.export refuses the student: {line}") from error
        archive.check()
        return Written(float_weight_bytes(student))

    def verify(self, student: fx.GraphModule, path: Path) -> None:
        """See `Exporter.verify`: all parameters and buffers."""
        program = _loaded(path)
        check_state(student.state_dict(keep_vars=True), program.state_dict | program.constants)

    def run(self, path: Path) -> Callable[..., Tensor]:
        """The file loaded by torch, which is safe only for files one has written oneself."""
        module = _loaded(path).module()

        def run(*given: Tensor) -> Tensor:
            return lined_up(module(*given))

        return run

    def exact(self, student: fx.GraphModule) -> bool:
        """It computes what the student does in the same order: nothing of its noise is allowed."""
        del student
        return True

    def judge(
        self, parity: Parity, own: Parity | None, path: Path, *, rounded: bool = False
    ) -> None:
        """Refuse any difference at all.

        Raises:
            ParityError: a logit differs.
        """
        if parity.difference != 0:
            raise ParityError(f"{path} differs from the student: {parity}; the file was not kept")


def _loaded(path: Path) -> ExportedProgram:
    """The program of `path`; torch would log a traceback where a path is not there."""
    with path.open("rb") as file:
        return torch.export.load(file)
