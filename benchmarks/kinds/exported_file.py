"""The file of a format, carried out by what it is made for, against the student."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.kinds.base import Bench, Kind
from benchmarks.kinds.in_runtime import compared
from datafree.config import RunConfig
from datafree.runs.plan import exporter_for


class ExportedFile(Kind):
    """Top-1 of student and file, percent of images for which both answer the same."""

    format: str = "onnx"
    """Suffix of the file."""

    def measure(self, config: RunConfig, bench: Bench) -> dict[str, Any]:
        """See the base class."""
        network, result = bench.network(config), self.run(config, bench)
        with TemporaryDirectory() as folder:
            path = Path(folder) / f"student.{self.format}"
            exporter = exporter_for(path)
            report = exporter.export(result.student, result.spec, path, check=result.images.images)
            predictors = {"expected": result.integer_model, "file": exporter.run(path)}
            found = compared(predictors, network.batches(config.limit))
        return {
            "top1": found["top1_file"], "student": found["top1_expected"],
            "identical": found["identical_file"], "bytes": report.bytes,
            "test_images": found["images"],
            "package": None if not exporter.package else version(exporter.package),
            "notes": list(report.notes),
        }  # fmt: skip
