"""What a runtime makes of a written student: integer kernels, and latency beside float."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import fx

from datafree.config import InputSpec, Method
from datafree.errors import InferenceError
from datafree.graph.fold import fold_batch_norms
from datafree.graph.outputs import together
from datafree.progress import Progress, silent
from datafree.registry import available
from datafree.runs.plan import make_method
from datafree.runtimes import (
    Latency,
    Runtime,
    advice,
    available_threads,
    integer_instructions,
    processor,
)

FLOAT = "float.onnx"
DEFAULT = "onnxruntime"
_UNDISTURBED = 0.9  # share of the time a thread has a processor for itself on an idle machine


@dataclass(frozen=True)
class Settings:
    """How files are measured.

    Attributes:
        runtime: its name.
        threads: numbers of threads; None is all this process may use.
        batches: images of a run.
        seconds: to spend on timed runs in all.
    """

    runtime: str = DEFAULT
    threads: tuple[int | None, ...] = (1, None)
    batches: tuple[int, ...] = (1, 8)
    seconds: float = 6.0


def runtime_named(name: str) -> Runtime:
    """The runtime called `name`.

    Raises:
        UnknownNameError: there is none; the nearest names are offered.
    """
    return make_method(Method(name=name), "runtimes", Runtime)


def runtime_of(target: str) -> str:
    """The runtime that files for `target` are measured in: its own, or onnxruntime."""
    return target if target in available("datafree.runtimes") else DEFAULT


def runtime_facts(
    student: Path,
    base: Path | None,
    shape: Sequence[int] | None,
    settings: Settings = Settings(),
    progress: Progress = silent,
) -> dict[str, Any]:
    """Open `student` in a runtime and tell what it made of it.

    Args:
        student: ONNX file.
        base: the float network's file, to be timed beside it; None times nothing.
        shape: of one image, (C, H, W); None times nothing.
        settings: runtime, threads, batches and time.
        progress: shown while files are timed.

    Returns:
        JSON values: ``runtime``, ``cpu``, ``integer`` of ``total`` layers, ``floats``, ``bytes``
        and, of files that were timed, ``latency_ms`` and ``notes``, what the user should know.

    Raises:
        InferenceError: the runtime is not installed, or refuses a file.
    """
    runtime = runtime_named(settings.runtime)
    timed = base is not None and shape is not None
    found = runtime.kernels(student, shape if timed else None)
    instructions = integer_instructions()
    known = None if instructions is None else list(instructions)
    facts: dict[str, Any] = {
        "runtime": f"{runtime.name} {runtime.version}",
        "cpu": {"name": processor(), "integer_instructions": known},
        **asdict(found),
        "floats": [asdict(layer) for layer in found.floats],
        "bytes": student.stat().st_size,
    }
    if base is None or shape is None:
        return facts
    files = {"float": base, "student": student}
    latencies = runtime.measure(
        files, shape, batches=settings.batches, threads=settings.threads,
        seconds=settings.seconds, progress=progress,
    )  # fmt: skip
    remedy = advice(found, latencies, instructions, runtime=runtime.name)
    notes = (remedy, _left_out(latencies, settings), _busy(latencies))
    return facts | {
        "float_bytes": base.stat().st_size,
        "latency_ms": _rows(latencies),
        "notes": [note for note in notes if note],
    }


def facts_of_run(
    student: Path,
    teacher: fx.GraphModule,
    spec: InputSpec,
    target: str,
    *,
    latency: bool,
    progress: Progress,
) -> dict[str, Any]:
    """`runtime_facts` of a run's file, beside its teacher; a refusal is told, not raised.

    Args:
        student: the written file.
        teacher: the float network as it was captured.
        spec: its input.
        target: of the run. Its runtime is taken if it is installed, else onnxruntime.
        latency: time both.
        progress: shown meanwhile.
    """
    name, missing = runtime_of(target), None
    try:
        _ = runtime_named(name).version
    except InferenceError as error:
        name, missing = DEFAULT, f"{error}, and the file is measured there"
    settings = Settings(runtime=name)
    try:
        if latency:
            with float_file(teacher, spec) as base:
                facts = runtime_facts(student, base, spec.shape, settings, progress)
        else:
            facts = runtime_facts(student, None, None, settings)
    except InferenceError as error:
        return {"runtime": name, "error": str(error)}
    return facts if missing is None else facts | {"notes": [missing, *facts.get("notes", ())]}


@contextmanager
def float_file(teacher: fx.GraphModule, spec: InputSpec) -> Generator[Path]:
    """The folded teacher as ONNX, in a folder that vanishes.

    Raises:
        ExportError: ONNX cannot express it.
    """
    from datafree.export.onnx import write_float

    with tempfile.TemporaryDirectory(prefix="datafree-") as folder:
        path = Path(folder) / FLOAT
        write_float(fold_batch_norms(together(teacher)), spec, path)
        yield path


def _left_out(latencies: Sequence[Latency], settings: Settings) -> str | None:
    """Which of the settings there was no time for; a file with a fixed batch has no others."""
    done = {(found.threads, found.batch) for found in latencies}
    threads = {available_threads() if n is None else n for n in settings.threads}
    asked = {(count, batch) for count in threads for batch in settings.batches}
    missing = sorted(asked - done) if asked & done else []
    if not missing:
        return None
    told = "; ".join(f"{t} thread{'s' if t > 1 else ''}, batch {b}" for t, b in missing)
    return f"Left out for want of time: {told}; datafree benchmark --seconds 60 measures it."


def _busy(latencies: Sequence[Latency]) -> str | None:
    """A word of warning where other programs took the processor meanwhile."""
    shares = [found.processor for found in latencies if found.threads == 1]
    several = any(found.threads > 1 for found in latencies)
    if not shares or not several or min(shares) >= _UNDISTURBED:
        return None
    return (
        f"Other programs took {100 * (1 - min(shares)):.0f} % of the processor: times of several"
        " threads are too long; datafree benchmark repeats it on an idle machine."
    )


def _rows(latencies: Sequence[Latency]) -> list[dict[str, Any]]:
    """One row per number of threads and batch: medians and quartiles of both files, rounded."""
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    for found in latencies:
        row = rows.setdefault(
            (found.threads, found.batch), {"threads": found.threads, "batch": found.batch}
        )
        row[found.file] = round(found.milliseconds, 4)
        row[f"{found.file}_quartiles"] = [round(found.low, 4), round(found.high, 4)]
        row["runs"] = found.runs
        row["processor"] = round(found.processor, 3)
    return list(rows.values())
