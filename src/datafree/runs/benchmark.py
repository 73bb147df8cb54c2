"""A student's file measured once more: of a finished run, or of any ONNX file."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datafree.config import load_config
from datafree.config.options import BenchmarkOptions
from datafree.errors import ConfigError, DatafreeError, UntrustedCodeError
from datafree.files import atomic_path, write_text
from datafree.jsons import from_json, to_json
from datafree.progress import Progress, silent
from datafree.runs.finished import restored
from datafree.runs.folder import ONNX
from datafree.runs.pipeline import Result
from datafree.runs.record import environment
from datafree.runs.runtime import (
    DEFAULT,
    FLOAT,
    Settings,
    float_file,
    runtime_facts,
    runtime_named,
    runtime_of,
)

RECORD = "benchmark.json"


def benchmark_run(
    subject: Path | Result,
    options: BenchmarkOptions,
    progress: Progress = silent,
    *,
    trust_code: bool = False,
) -> dict[str, Any]:
    """What a runtime makes of a student: integer kernels, layers in float, latency beside float.

    Args:
        subject: folder of a run, a run's result, or an ONNX file. What was measured is written to
            ``benchmark.json`` in a run's folder, beside what other runtimes said.
        options: runtime, threads, batches, time; the float network's file.
        progress: shown while files are timed.
        trust_code: Python code that a run's configuration names may run.

    Returns:
        As `datafree.runs.runtime.runtime_facts`. Of a file without ``options.float_file`` nothing
        is timed.

    Raises:
        ConfigError: the folder holds no run or no student, or its teacher can no longer be loaded
            and no float file is at hand.
        UntrustedCodeError: the float network comes from code, and `trust_code` is not set.
        InferenceError: the runtime is not installed, or refuses a file.
    """
    folder = subject.folder if isinstance(subject, Result) else subject
    if folder is None:
        raise ConfigError("this result was not written: quantize with output, and a folder")
    settings = Settings(
        runtime=str(options.runtime or runtime_of(_target(folder))),
        threads=tuple(None if n == "all" else n for n in options.threads),
        batches=options.batch,
        seconds=options.seconds,
    )
    runtime = runtime_named(settings.runtime)
    _ = runtime.version  # what is not installed is told before anything is made
    if folder.is_dir():
        with _float_of(subject, folder, options, trust_code) as base:
            shape = options.input_shape or runtime.image_shape(base)
            facts = runtime_facts(folder / ONNX, base, shape, settings, progress)
        _record(folder / RECORD, runtime.name, facts)
        return facts
    if not folder.exists():
        raise ConfigError(f"there is no {folder}: give the folder of a run, or an ONNX file")
    base = options.float_file
    shape = options.input_shape or (None if base is None else runtime.image_shape(folder))
    return runtime_facts(folder, base, shape, settings, progress)


def _target(subject: Path) -> str:
    """Target of the run in a folder; what is no run is measured in onnxruntime."""
    try:
        return load_config(subject / "config.yaml").target
    except DatafreeError:
        return DEFAULT


@contextmanager
def _float_of(
    subject: Path | Result, folder: Path, options: BenchmarkOptions, trust_code: bool
) -> Generator[Path]:
    """The float network's file of a run: given, kept earlier, or made from the teacher."""
    if not (folder / "config.yaml").exists():
        raise ConfigError(f"{folder} is not a run: give the folder that quantize wrote")
    if not (folder / ONNX).exists():
        raise ConfigError(
            f"{folder} holds no {ONNX}: write it with datafree export {folder} --output"
            f" {folder / ONNX}"
        )
    kept = folder / FLOAT
    if options.float_file is not None or kept.exists():
        yield options.float_file or kept
        return
    try:
        known = isinstance(subject, Result)
        result = subject if known else restored(folder, trust_code=trust_code)
    except UntrustedCodeError:
        raise
    except DatafreeError as error:
        raise ConfigError(f"{error}; or give the float network's file, --float-file") from error
    with float_file(result.teacher, result.spec) as made:
        if options.keep_float:
            with atomic_path(kept) as temporary:
                shutil.copyfile(made, temporary)
        yield made


def _record(path: Path, name: str, facts: dict[str, Any]) -> None:
    """Put `facts` of runtime `name` into a file that may hold those of others."""
    try:
        found = from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = {}
    known = found if isinstance(found, dict) else {}
    known[name] = facts | {"environment": environment()}
    write_text(path, to_json(known, path.name, indent=2) + "\n")
