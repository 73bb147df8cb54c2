"""One cell: computed where nobody else does it, found where it is finished, told where it fails."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock

from datafree.bounds import first_line
from datafree.config import RunConfig, build
from datafree.errors import DatafreeError, VerdictError
from datafree.progress import Progress, silent
from datafree.runs.searching import carry_out
from datafree.sweeps.folder import Folder, finished
from datafree.sweeps.plan import Cell

_MEMORY = "did it run out of memory? fewer --workers leave more to each"


@dataclass(frozen=True)
class Job:
    """What a process anywhere needs to compute a cell: plain values alone.

    Attributes:
        name: of the cell's folder.
        label: of the cell, for people.
        config: of the run, as plain values.
        folder: of the sweep, absolute.
        base: folder that relative paths start from.
        threads: of the cell.
        retries: how often it may be begun again.
        call: id of the call that asks for it.
    """

    name: str
    label: str
    config: Mapping[str, Any]
    folder: str
    base: str
    threads: int
    retries: int
    call: str


@dataclass(frozen=True)
class Outcome:
    """What became of a cell.

    Attributes:
        name: of the cell's folder.
        status: `computed` by this call, `found` finished, or `failed`.
        seconds: it took this time.
        error: of one that failed, one line.
    """

    name: str
    status: Literal["computed", "found", "failed"]
    seconds: float = 0.0
    error: str = ""


def job_of(cell: Cell, folder: Folder, *, threads: int, retries: int, call: str) -> Job:
    """The job that computes `cell`."""
    place, base = str(folder.path.absolute()), str(Path.cwd())
    config = cell.config.model_dump(mode="json")
    return Job(cell.name, str(cell), config, place, base, threads, retries, call)


def compute(job: Job, progress: Progress = silent) -> Outcome:
    """Compute a cell, unless it is finished; wait while another process is at it.

    Whatever goes wrong with the cell is told, never raised: other cells go on.
    """
    folder = Folder(Path(job.folder))
    try:
        with FileLock(folder.lock(job.name)), _threads(job.threads):
            return _computed(job, folder, progress)
    except DatafreeError as error:
        return Outcome(job.name, "failed", error=str(error))
    except OSError as error:
        place = error.filename or job.folder
        return Outcome(job.name, "failed", error=f"cannot write {place}: {error.strerror}")


def compute_elsewhere(job: Job) -> Outcome:
    """`compute` in a process that was not started in the folder of the sweep's caller."""
    try:
        os.chdir(job.base)
    except OSError as error:
        text = f"the folder {job.base} is not on this machine ({error.strerror}): machines of a"
        return Outcome(job.name, "failed", error=f"{text} cluster share a file system")
    return compute(job)


def _computed(job: Job, folder: Folder, progress: Progress) -> Outcome:
    """`compute` by whoever holds the lock of the cell.

    Raises:
        DatafreeError: the cell is damaged, or of other settings.
    """
    place, log = folder.cell(job.name), folder.log(job.name)
    config = build(RunConfig, job.config, f"cell {job.label}")
    if finished(place, config) is not None:
        return Outcome(job.name, "found")
    begun = log.begun(job.call)
    if begun > job.retries:
        return _failed(job, folder, f"the process that computes it died {begun} times; {_MEMORY}")
    log.add("started", call=job.call)
    started = time.perf_counter()
    try:
        carry_out(config, folder=place, progress=progress)
    except VerdictError:
        pass  # all was written, and the table tells
    except DatafreeError as error:
        return _failed(job, folder, str(error))
    except Exception as error:  # noqa: BLE001 - one cell never ends the others
        text = f"{type(error).__name__}: {first_line(error)} (whole in {log.path})"
        return _failed(job, folder, text, traceback=traceback.format_exc())
    seconds = time.perf_counter() - started
    log.add("finished", call=job.call, seconds=round(seconds, 3))
    return Outcome(job.name, "computed", seconds)


def _failed(job: Job, folder: Folder, error: str, **told: str) -> Outcome:
    folder.log(job.name).add("failed", call=job.call, error=error, **told)
    return Outcome(job.name, "failed", error=error)


@contextmanager
def _threads(count: int) -> Generator[None]:
    """Compute with `count` threads meanwhile: sums are rounded by their order."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
