"""The record of a run: what was computed, on what, in how much time."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datafree.errors import OutputError
from datafree.files import sha256, write_text
from datafree.jsons import to_json
from datafree.runs.folder import REPORT
from datafree.runtimes import processor
from datafree.tensors import release_memory

_PACKAGES = (
    "datafree", "torch", "numpy", "onnx", "onnxruntime", "openvino", "pydantic", "safetensors",
)  # fmt: skip


class Stopwatch:
    """Seconds per stage, in the order the stages began.

    Attributes:
        seconds: by stage.
        network: the stages work on, once it is there; what each of them leaves is given back.
    """

    def __init__(self) -> None:
        """Start with no stage."""
        self.seconds: dict[str, float] = {}
        self.network: nn.Module | None = None

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Time the enclosed work; a stage entered twice adds up."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        if self.network is not None:
            release_memory(self.network)


def environment() -> dict[str, Any]:
    """Machine and versions, for whoever repeats a run."""
    return {
        "machine": platform.machine(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def write_metrics(path: Path, results: dict[str, Any], seconds: dict[str, float]) -> None:
    """Write `results`, timings, environment and hashes of the run's other files as JSON.

    Everything that two runs with the same seed on the same machine share stands under ``results``
    and ``hashes``; what differs stands under ``seconds`` and ``runtime``, which is that of
    `results`. Infinities are strings, see `datafree.jsons`.

    Raises:
        DatafreeError: a number is NaN.
        OutputError: it cannot be written, or files of the run were removed meanwhile.
    """
    results = dict(results)
    runtime = results.pop("runtime", None)
    # A page tells times, and is written again at will.
    aside = (path.name, REPORT)
    files = [
        p for p in sorted(path.parent.iterdir())
        if p.is_file() and p.name not in aside and p.name[0] != "."
    ]  # fmt: skip
    record = {
        "results": results,
        "hashes": {p.name: sha256(p) for p in files},
        **({} if runtime is None else {"runtime": runtime}),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "environment": environment(),
    }
    write_text(path, to_json(record, path.name, indent=2) + "\n")
    try:
        check_there(files)
    except OutputError:  # a record would tell of a finished run
        path.unlink(missing_ok=True)
        raise


def check_there(files: Iterable[Path]) -> None:
    """Refuse to go on where somebody removes what a run has written.

    Raises:
        OutputError: one of `files` is not there.
    """
    for path in files:
        if not path.exists():
            raise OutputError(
                f"{path} was removed while the run went on: the same command makes it again"
            )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
