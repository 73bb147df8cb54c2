"""A sweep whose workers and driver are killed: nothing finished is lost or computed twice.

    python tests/killed_sweeps.py                 # 24 cells, about ten minutes of processor time
    python tests/killed_sweeps.py --cells 6       # as CI has it

The same cells are computed by one process, on a Ray cluster of two machines with a processor each
(two workers and the driver are killed), and by three parts that are merged (one of them is killed).
What happened is counted in the logs of the cells.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "f" * 64  # of the clusters here
ASKED = {"RAY_AUTH_MODE": "token"}  # which `datafree sweep` finds out by itself
WHOLE_TIME = 1800.0  # seconds, after which something hangs
PLAN = """
base:
  model: digits_resnet8
  images: 8
  holdout: 8
  isolate: false
  latency: false
  report: false
  export: {export}
  calibrator: minmax
axes:
  method:
    zeroq: {{method: zeroq, method_options: {{iterations: 20}}}}
    noise: {{method: noise}}
    dsg: {{method: dsg, method_options: {{iterations: 20}}}}
  bits: {bits}
  seed: {seeds}
"""
SIZES = {
    24: ("[W8A8, W4A4]", "[0, 1, 2, 3]"),
    6: ("[W4A4]", "[0, 1]"),
    12: ("[W4A4]", "[0, 1, 2, 3]"),
}


@dataclass(frozen=True)
class Log:
    """What the log of a cell says."""

    cell: str
    events: tuple[dict[str, Any], ...]

    @property
    def starts(self) -> int:
        return sum(one["event"] == "started" for one in self.events)

    @property
    def running(self) -> int | None:
        """The process that is at it, as far as the log knows."""
        last = self.events[-1] if self.events else {"event": ""}
        return int(last["process"]) if last["event"] == "started" else None

    @property
    def twice(self) -> bool:
        """Whether it was begun after it had ended."""
        names = [one["event"] for one in self.events]
        return "finished" in names and "started" in names[names.index("finished") :]


def logs(folder: Path) -> list[Log]:
    found: list[Log] = []
    for path in sorted((folder / "log").glob("*.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = (json.loads(line) for line in lines if line.endswith("\n"))
        found.append(Log(path.stem, tuple(whole)))
    return found


def finished(folder: Path) -> dict[str, int]:
    """Cells whose record is there, and when it was written in nanoseconds."""
    records = (folder / "cells").glob("*/metrics.json")
    return {path.parent.name: path.stat().st_mtime_ns for path in records}


def digests(folder: Path) -> dict[str, str]:
    lines = (folder / "table.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["folder"]: row["digest"] for row in map(json.loads, lines)}


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "datafree", *map(str, words)]


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RAY_AUTH_TOKEN": TOKEN}


def carry_out(place: Path, *words: str | Path) -> str:
    done = subprocess.run(
        command(*words), cwd=place, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Killed:
    """A sweep that is run to its end, however often it is killed."""

    def __init__(self, place: Path, folder: Path, words: Sequence[str | Path]) -> None:
        self.folder = folder
        self._place, self._words = place, words
        self._killed: set[int] = set()
        self._until = time.monotonic() + WHOLE_TIME
        self.driver = self._begun()

    def _begun(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command(*self._words), cwd=self._place, env=environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def worker(self, after: int) -> str:
        """Kill the process of a running cell once so many are finished; the cell."""
        while True:
            if len(finished(self.folder)) >= after:
                for log in logs(self.folder):
                    pid = log.running
                    if pid is None or pid in self._killed or log.cell in finished(self.folder):
                        continue
                    if _kill(pid):
                        self._killed.add(pid)
                        return log.cell
            self._pause()

    def driver_of(self, after: int) -> dict[str, int]:
        """Kill the driver once so many cells are finished, and begin anew; those that were."""
        while len(finished(self.folder)) < after:
            self._pause()
        self.driver.kill()
        self.driver.communicate()
        found = finished(self.folder)
        self.driver = self._begun()
        return found

    def end(self) -> str:
        """What the driver that came to the end said."""
        out, _ = self.driver.communicate(timeout=max(self._until - time.monotonic(), 1.0))
        assert self.driver.returncode == 0, out
        return out

    def _pause(self) -> None:
        assert time.monotonic() < self._until, "the sweep hangs"
        assert self.driver.poll() is None, self.driver.communicate()[0]
        time.sleep(0.02)


@contextmanager
def cluster(machines: int) -> Generator[str]:
    """The address of a Ray cluster of so many `machines` here, with a processor each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, temporary = f"127.0.0.1:{port}", tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    small = ("--num-cpus", "1", "--object-store-memory", "80000000", "--disable-usage-stats")
    head = ("--head", "--port", str(port), "--include-dashboard", "false", "--temp-dir", temporary)
    started: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(machines):
            own = head if number == 0 else ("--address", address)
            started.append(_machine((*own, *small)))
            _wait_for(address, number + 1)
        yield address
    finally:
        for machine in reversed(started):
            for pid in _session(machine.pid):
                if pid != machine.pid:
                    _kill(pid)
            machine.kill()
            machine.wait()
        shutil.rmtree(temporary, ignore_errors=True)


def _machine(words: Sequence[str]) -> subprocess.Popen[bytes]:
    ray = (sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--block")
    return subprocess.Popen(
        [*ray, *words], env=environment() | ASKED, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def _wait_for(address: str, machines: int) -> None:
    """Wait until a cluster has so many machines."""
    code = (
        "import ray, sys; ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR');"
        "print(sum(node['Alive'] for node in ray.nodes()))"
    )
    said = ""
    for _ in range(60):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, address],
            env=environment() | ASKED, capture_output=True, text=True, check=False,
        )  # fmt: skip
        said = done.stderr
        if done.returncode == 0 and int(done.stdout.split()[-1]) >= machines:
            return
        time.sleep(1)
    raise AssertionError(f"no cluster of {machines} machines at {address}: {said}")


def _session(leader: int) -> list[int]:
    """All processes of the session that `leader` began, which nothing else is in."""
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader:
            found.append(int(stat.parent.name))
    return found


def _kill(pid: int) -> bool:
    """Kill a process; whether there was one."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def by_ray(place: Path, folder: Path, cells: int) -> dict[str, Any]:
    """The sweep on a cluster: two workers are killed, then the driver."""
    with cluster(2) as address:
        words = ("sweep", "plan.yaml", "--engine", "ray", "--address", address, "--output", folder)
        killed = Killed(place, folder, words)
        try:
            workers = [killed.worker(1), killed.worker(cells // 4)]
            before = killed.driver_of(cells // 2)
            killed.end()
        finally:
            killed.driver.kill()
    return counted(folder, before) | {
        "killed": workers,
        "finished when the driver died": len(before),
    }


def here(place: Path, folder: Path, cells: int) -> dict[str, Any]:
    """The sweep in two processes of this machine: one is killed, then the driver."""
    killed = Killed(place, folder, ("sweep", "plan.yaml", "--workers", "2", "--output", folder))
    try:
        workers = [killed.worker(1)]
        before = killed.driver_of(cells // 2)
        killed.end()
    finally:
        killed.driver.kill()
    return counted(folder, before) | {
        "killed": workers,
        "finished when the driver died": len(before),
    }


def by_parts(place: Path, folder: Path, cells: int) -> dict[str, Any]:
    """The sweep in three parts, the first of which is killed and begun again, then merged."""
    parts = [folder / f"part-{k}" for k in range(3)]
    words = ("sweep", "plan.yaml", "--workers", "1", "--shard")
    killed = Killed(place, parts[0], (*words, "0/3", "--output", parts[0]))
    try:
        before = killed.driver_of(max(cells // 6, 1))
        killed.end()
    finally:
        killed.driver.kill()
    for k, part in enumerate(parts[1:], 1):
        carry_out(place, *words, f"{k}/3", "--output", part)
    carry_out(place, "merge", *parts, "--output", folder / "whole")
    told = counted(parts[0], before)
    told["starts"] += sum(log.starts for part in parts[1:] for log in logs(part))
    return told | {"finished when the driver died": len(before)}


def counted(folder: Path, before: dict[str, int]) -> dict[str, Any]:
    """What the logs say; those that were finished `before` the driver died are as they were."""
    now, found = finished(folder), logs(folder)
    assert {cell: now[cell] for cell in before} == before
    assert not [log.cell for log in found if log.twice]
    assert len(found) == len(now)
    return {"starts": sum(log.starts for log in found)}


def plan(cells: int, *, export: bool) -> str:
    bits, seeds = SIZES[cells]
    return PLAN.format(bits=bits, seeds=seeds, export=str(export).lower())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, choices=sorted(SIZES), default=24)
    parser.add_argument("--export", action="store_true", help="write ONNX and .pt2 too")
    parser.add_argument("--output", type=Path, help="folder to keep all of it in")
    args = parser.parse_args()
    place = args.output or Path(tempfile.mkdtemp(prefix="killed-sweeps-"))
    place.mkdir(parents=True, exist_ok=True)
    (place / "plan.yaml").write_text(plan(args.cells, export=args.export), encoding="utf-8")
    carry_out(place, "sweep", "plan.yaml", "--workers", "1", "--output", place / "one")
    expected = digests(place / "one")
    assert len(expected) == args.cells
    sys.stdout.write(f"{place}: {args.cells} cells by one process\n")
    for name, way in (("ray", by_ray), ("parts", by_parts), ("here", here)):
        told = way(place, place / name, args.cells)
        whole = place / name / "whole" if name == "parts" else place / name
        assert digests(whole) == expected, name
        sys.stdout.write(f"{name}: equal to one process, cell by cell; {told}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
