"""A finished run as an object: its record at once, its networks when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import fx

from datafree.config import InputSpec, RunConfig
from datafree.config.base import build
from datafree.errors import ConfigError
from datafree.images import SyntheticSet
from datafree.progress import Progress, silent
from datafree.progress.bars import progress_of
from datafree.runs.accuracy import Metric
from datafree.runs.finished import evaluate_run, export_run, restored
from datafree.runs.folder import IMAGES
from datafree.runs.pipeline import Result
from datafree.runs.stored import Stored, read_run


@dataclass(frozen=True)
class Run:
    """A finished run, read from its folder.

    Reading takes a moment; the networks are made when `student`, `teacher` or `result` are first
    asked for, which needs the float network: the one the run kept, or that of its source.

    Attributes:
        folder: where it is.
        stored: its text files as they are.
        trust_code: Python code that its configuration names may run.
    """

    folder: Path
    stored: Stored
    trust_code: bool = False

    @property
    def config(self) -> RunConfig:
        """What was asked for, defaults included."""
        return self.stored.config

    @property
    def metrics(self) -> dict[str, Any]:
        """What was measured, as `Result.metrics`; labelled images as last evaluated."""
        return self.stored.metrics

    @property
    def evaluations(self) -> tuple[Mapping[str, Any], ...]:
        """What `evaluate` measured, the last one last: data, networks, values, machine and more."""
        return self.stored.evaluations

    @property
    def seconds(self) -> dict[str, float]:
        """By stage."""
        return dict(self.stored.record.get("seconds", {}))

    @property
    def environment(self) -> dict[str, Any]:
        """Machine and versions it was made with."""
        return dict(self.stored.record.get("environment", {}))

    @cached_property
    def images(self) -> SyntheticSet:
        """The images it was calibrated with; none where it needed none.

        Raises:
            DataError: the file is damaged.
        """
        if (self.folder / IMAGES).exists():
            return SyntheticSet.load(self.folder / IMAGES)
        told = self.metrics.get("input")
        if told is None:
            return self.result.images
        return SyntheticSet.none(build(InputSpec, told, f"input of {self.folder}"))

    @cached_property
    def result(self) -> Result:
        """All of it, as `quantize` returned it.

        Raises:
            ModelError: the float network is neither in the folder nor where it came from.
            UntrustedCodeError: it comes from code, and `trust_code` is not set.
        """
        return restored(self.folder, trust_code=self.trust_code)

    @property
    def student(self) -> fx.GraphModule:
        """The quantized network, an ordinary module on normalised images; errors of `result`."""
        return self.result.student

    @property
    def teacher(self) -> fx.GraphModule:
        """The float network it was made from, likewise."""
        return self.result.teacher

    def evaluate(
        self,
        data: Path | str | None = None,
        *,
        limit: int | None = None,
        metric: str | Metric | None = None,
        onnx: bool = False,
        device: str | None = None,
        progress: Progress | bool = silent,
    ) -> dict[str, Any]:
        """Measure teacher and student on labelled images, and write it into the folder.

        Args:
            data: labelled images as `quantize` takes them; None takes those of the run.
            limit: use at most this many.
            metric: a measure of the user's own, a function or ``file.py:function``.
            onnx: measure ``student.onnx`` in onnxruntime too.
            device: where to compute; None as the run.
            progress: True shows bars; or see `datafree.progress`.

        Returns:
            ``top1``, ``miou`` or ``metric`` by network, and ``test_images``.

        Raises:
            DataError: no data, or data that do not fit.
            ModelError: the float network cannot be loaded.
        """
        named = {"data": data, "limit": limit, "device": device}
        own = metric if callable(metric) else None
        changes = named if own is not None else {**named, "metric": metric}
        shown = progress_of(progress)
        return evaluate_run(
            self.folder,
            changes,
            onnx=onnx,
            metric=own,
            trust_code=self.trust_code,
            progress=shown,
        ).measured

    def export(
        self,
        path: Path | str,
        *,
        format: str | None = None,
        format_options: Mapping[str, Any] | None = None,
        force: bool = False,
    ) -> dict[str, Any]:
        """Write the student to `path` in another format, and check the file.

        Args:
            path: ``.onnx``, ``.pt2``, ``.pte``, ``.tflite``, ….
            format: of the file; None is its suffix.
            format_options: hyper-parameters of the format.
            force: replace a file that exists.

        Returns:
            ``line``, ``bytes``, ``parity``, ``notes`` and more.

        Raises:
            ExportError: it cannot be written so, or does not compute what the student computes.
            ModelError: the float network cannot be loaded.
        """
        return export_run(
            self.folder,
            Path(path),
            format=format,
            options=format_options,
            force=force,
            trust_code=self.trust_code,
        )


def load_run(folder: Path | str, *, trust_code: bool = False) -> Run:
    """The finished run in `folder`, wherever that was moved.

    Args:
        folder: that `quantize`, `distill` or the command line wrote.
        trust_code: Python code that its configuration names (a function that builds the network,
            a method or a measure of somebody's) may run when it is needed.

    Raises:
        ConfigError: no run, an unfinished one, or one of another version; one line says which.
    """
    if not isinstance(folder, str | Path):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"load_run takes the folder of a run, not a {type(folder).__name__}")
    path = Path(folder)
    return Run(path, read_run(path), trust_code)
