"""What a run writes of its student, and what is told of every file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import fx

from datafree.config import InputSpec, Method, RunConfig
from datafree.export.base import Exporter, ExportReport
from datafree.graph.capture import to_device
from datafree.images import SyntheticSet
from datafree.runs.folder import save_student
from datafree.runs.plan import make_method


def export_student(
    folder: Path, student: fx.GraphModule, spec: InputSpec, config: RunConfig, images: SyntheticSet
) -> dict[str, Any]:
    """Write the student of a run and, unless it wants no export, ONNX and `.pt2` of it.

    Args:
        folder: of the run.
        student: quantized.
        spec: its input.
        config: of the run.
        images: the files are checked on.

    Returns:
        What is told of the files, by format.
    """
    save_student(student, folder)
    if not config.export:
        return {}
    summaries: dict[str, Any] = {}
    for target, options in (("onnx", {"weight_type": config.weight_type}), ("pt2", {})):
        exporter: Exporter = make_method(Method(name=target, options=options), "export", Exporter)
        report = exporter.export(
            to_device(student, torch.device("cpu")),
            spec,
            folder / f"student.{target}",
            check=images.images if len(images) else None,
            label=config.scheme.label,
            force=True,
        )
        summaries[target] = summarize(report)
    return summaries


def summarize(report: ExportReport) -> dict[str, Any]:
    """An export report as JSON values: one line for people, the numbers behind it, notes."""
    weights = "weights in float"  # of a student that was distilled and not quantized
    if report.float_weight_bytes > report.unquantized_bytes:
        share = report.weight_bytes / report.float_weight_bytes
        weights = f"weights {100 * share:.1f} % of float"
    return {
        "line": f"{report.bytes / 1000:.0f} kB, {weights}; {report.parity}",
        "bytes": report.bytes,
        "weight_bytes": report.weight_bytes,
        "float_weight_bytes": report.float_weight_bytes,
        "unquantized_bytes": report.unquantized_bytes,
        "opset": report.opset,
        "parity": asdict(report.parity),
        "saturates": report.saturates,
        "notes": list(report.notes),
    }
