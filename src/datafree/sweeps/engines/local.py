"""Cells on this machine: in this process, or in several that may die without harm."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from datafree.progress import Progress
from datafree.sweeps.computing import Job, Outcome, compute
from datafree.sweeps.folder import Folder

_SOURCE = Path(__file__).parents[3]  # where the package is found

_DYING = 10.0  # seconds for a process to end by itself, so that it can tell how it did


def one_by_one(jobs: Sequence[Job], progress: Progress) -> Generator[Outcome]:
    """Compute `jobs` one after the other in this process."""
    for job in jobs:
        yield compute(job, progress)


def outcomes(jobs: Sequence[Job], workers: int, retries: int) -> Generator[Outcome]:
    """Compute `jobs` in as many processes as there are `workers`.

    A process that dies is replaced, and its cell begun again, `retries` times at most.
    """
    crew = [_Worker(number, Folder(Path(jobs[0].folder))) for number in range(workers)]
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in crew:
        idle.put(worker)

    def done(job: Job) -> Outcome:
        worker = idle.get()
        try:
            return worker.outcome(job, retries)
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(workers) as pool:
        futures: list[Future[Outcome]] = [pool.submit(done, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in crew:
                worker.end()


class _Worker:
    """A process that computes one cell after the other, and is started again when it dies."""

    def __init__(self, number: int, folder: Folder) -> None:
        self._told = folder.logs / f"worker-{number}.txt"  # its standard error
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False

    def outcome(self, job: Job, retries: int) -> Outcome:
        """Have `job` computed."""
        line = json.dumps(asdict(job)).encode() + b"\n"
        for _ in range(retries + 1):
            answer = self._asked(line)
            if answer:
                return Outcome(**json.loads(answer))
            if self._ended:
                break
        return Outcome(
            job.name, "failed",
            error=f"its process died {retries + 1} times: {self._why()}; did it run out of memory?"
            " fewer --workers leave more to each",
        )  # fmt: skip

    def end(self) -> None:
        """End the process, in whatever it is doing."""
        self._ended = True
        if self._process is not None:
            self._process.kill()
            with suppress(OSError), self._process:  # closes its pipes
                pass

    def _asked(self, line: bytes) -> bytes:
        """The answer of the process; empty where it died."""
        if self._ended:
            return b""
        process = self._process = self._alive()
        if self._ended:  # while it was started
            process.kill()
            return b""
        assert process.stdin is not None and process.stdout is not None  # noqa: S101 - pipes
        answer = b""
        with suppress(OSError):  # it died while it was told
            process.stdin.write(line)
            process.stdin.flush()
            answer = process.stdout.readline()
        if answer.endswith(b"\n"):
            return answer
        try:
            process.wait(_DYING)  # pipes close before a process is gone, and it takes no more jobs
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return b""

    def _alive(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        path = [str(_SOURCE), os.environ.get("PYTHONPATH", "")]
        with self._told.open("ab") as told:
            return subprocess.Popen(
                [sys.executable, "-m", "datafree.sweeps.engines.worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=told,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
            )  # fmt: skip

    def _why(self) -> str:
        """How the process ended: the signal or code, and its last words."""
        code = None if self._process is None else self._process.wait()
        lines = self._told.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        told = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return f"{told}, {last[:200]}" if last else told
