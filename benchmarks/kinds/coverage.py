"""What becomes of a network, stage by stage: taken, images made, quantized, written, run."""

from __future__ import annotations

import traceback
import warnings
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from benchmarks import networks
from benchmarks.kinds.base import Bench, Kind
from datafree.cli.runtimes import by_reason
from datafree.config import RunConfig
from datafree.errors import DatafreeError
from datafree.export.onnx import Onnx
from datafree.graph.capture import capture
from datafree.models import Teacher
from datafree.runs.exporting import summarize
from datafree.runs.pipeline import run
from datafree.runs.runtime import runtime_named
from datafree.runtimes import UNKNOWN

_WIDTHS = ("W8A8", "W4A8")
_LOSSES = ("kl", "error")
"""Of held-out images: divergence, or relative error where there are no classes."""


class Coverage(Kind):
    """Whether a network comes to a file that runs, at 8 bits and at 4, and what stays float.

    `exports` tells whether `torch.export` takes the network with a batch of any size, `door` that
    the network was captured, `W8A8` and `W4A8` the layers with integer kernels of all, once the
    file was written, run by onnxruntime and found equal to the student. `loss_8` and `loss_4` are
    divergence or relative error on held-out images. `cause` is what a stage refused with, and
    `trace` is there where that was no error of the library's own.
    """

    def measure(self, config: RunConfig, bench: Bench) -> dict[str, Any]:
        """See the base class."""
        found: dict[str, Any] = {"door": "no"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                teacher = networks.load(config.model, bench.place).teacher
            except Exception as error:  # noqa: BLE001 - a page of what goes wrong
                return found | _cause("the door", error)
            try:
                capture(teacher.model, teacher.spec)
            except Exception as error:  # noqa: BLE001 - likewise
                return found | {"exports": _exports(teacher)} | _cause("capture", error)
            found |= {"exports": "yes", "door": "yes", "task": teacher.spec.task}
            for bits in _WIDTHS:
                try:
                    outcome = _outcome(config, teacher, bits, bench)
                except Exception as error:  # noqa: BLE001 - likewise
                    return found | _cause(bits, error)
                silent = found.get("silent", 0) + outcome["silent"]
                floats = found.get("floats") or outcome["floats"]
                found |= {**outcome, "silent": silent, "floats": floats}
        return found


def _exports(teacher: Teacher) -> str:
    """Whether `torch.export` takes the network as it is."""
    model = teacher.model
    if isinstance(model, ExportedProgram):
        return "yes"
    return "yes" if _taken(model, teacher.spec.shape) else "no"


def _taken(model: nn.Module, shape: tuple[int, ...]) -> bool:
    try:
        images = torch.zeros(2, *shape)
        torch.export.export(model, (images,), dynamic_shapes=({0: Dim("batch", min=1)},))
    except Exception:  # noqa: BLE001 - torch raises many kinds
        return False
    return True


def _outcome(config: RunConfig, teacher: Teacher, bits: str, bench: Bench) -> dict[str, Any]:
    """A run, its file, and what the runtime made of that."""
    changes = {"bits": bits, "device": "cpu", "export": False, "isolate": False}
    result = run(config.model_copy(update=changes), teacher=teacher, progress=bench.progress)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "student.onnx"
        report = Onnx().export(result.student, result.spec, path, check=result.images.images)
        kernels = runtime_named(config.target).kernels(path)
    held_out, width = result.metrics.get("held_out", {}), bits[1]
    floats = by_reason([asdict(layer) for layer in kernels.floats])
    return {
        bits: f"{kernels.integer} of {kernels.total}",
        "floats": "; ".join(f"{names}: {reason}" for reason, names in floats) or None,
        "silent": sum(layer.reason == UNKNOWN for layer in kernels.floats),
        f"loss_{width}": next((held_out[name] for name in _LOSSES if name in held_out), None),
        f"line_{width}": summarize(report)["line"],
        "method": str(result.config.method),
    }


def _cause(stage: str, error: Exception) -> dict[str, Any]:
    found: dict[str, Any] = {"cause": f"{stage}: {' '.join(str(error).split())[:300]}"}
    if not isinstance(error, DatafreeError):
        found["trace"] = "".join(traceback.format_exception(error))[-2000:]
    return found
