"""Give changed files to every reader and note what should not have been.

    python scripts/fuzz.py --seconds 60 [reader ...]     with atheris, guided by coverage
    python scripts/fuzz.py --seconds 60 --blind          without: seeded changes of the corpus
    python scripts/fuzz.py --corpus                      write tests/faults/corpus anew

Anything but a `DatafreeError` is a finding, and so are code of the file that runs (Python's audit
events tell), 5 seconds and 1 GiB. Inputs of findings are written beside the record.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from datetime import date
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "faults"), str(ROOT)]
RECORDS = ROOT / "benchmarks" / "results" / "fuzz.jsonl"
_MEMORY = 12 * 2**30  # a machine outlives what a reader does wrong
_NAMES = (
    "program", "onnx", "weights", "images", "generator", "arrays", "pictures", "labels", "boxes",
    "config", "record", "options",
)  # fmt: skip


def main() -> None:
    """Fuzz the readers asked for, each in a process of its own."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("readers", nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=60, help="for each reader")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--blind", action="store_true", help="without atheris")
    parser.add_argument("--corpus", action="store_true", help="write the corpus anew")
    parser.add_argument("--record", type=Path, default=RECORDS)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.corpus:
        import_module("readers").write_corpus()
        return
    if asked.inside:
        (name,) = asked.readers
        one_reader(name, asked)
        return
    unknown = set(asked.readers) - set(_NAMES)
    if unknown:
        parser.error(f"no such reader: {', '.join(unknown)} (there are {', '.join(_NAMES)})")
    found = 0
    for name in asked.readers or _NAMES:
        found += separate(name, asked)
    sys.exit(bool(found))


def separate(name: str, asked: argparse.Namespace) -> int:
    """Fuzz one reader in a process of its own and add a record; the number of findings."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        told = Path(folder) / "told.json"
        command = [sys.executable, __file__, name, "--inside", str(told), "--seed", str(asked.seed)]
        command += ["--seconds", str(asked.seconds), *(["--blind"] if asked.blind else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        measured = json.loads(told.read_text()) if told.exists() else {"findings": []}
        if not told.exists() or done.returncode not in (0, None):
            last = (done.stderr.strip().splitlines() or [""])[-1]
            measured["findings"].append(f"ended with {done.returncode}: {last[:200]}")
            keep = Path(tempfile.gettempdir()) / f"fuzz-{name}.txt"
            keep.write_text(done.stderr[-20_000:])
    seconds = measured.pop("seconds", 0.0)
    line = {
        "table": "fuzz",
        "cell": {"reader": name, "seed": asked.seed},
        "measured": measured,
        "seconds": seconds,
        "settings": {"guided": not asked.blind, "limit_seconds": 5, "limit_bytes": 2**30},
        "environment": environment(),
        "command": f"python scripts/fuzz.py --seconds {asked.seconds:g} {name}",
        "commit": commit(),
    }
    with asked.record.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(f"{name}: {measured.get('executions', 0)} inputs in {seconds:.0f} s")
    for finding in measured["findings"]:
        print(f"  {finding}")
    return len(measured["findings"])


def one_reader(name: str, asked: argparse.Namespace) -> None:
    """Fuzz the reader called `name` in this process, which atheris ends."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    warnings.simplefilter("ignore")
    runner, change, begin = prepared(name, guided=not asked.blind)
    told, began = asked.inside, time.monotonic()
    noted = began

    def note() -> None:
        state = runner.told
        findings = sorted(state.findings)
        for number, finding in enumerate(findings):
            place = Path(tempfile.gettempdir()) / f"fuzz-{name}-{number}.bin"
            place.write_bytes(state.findings[finding])
        measured = {
            "executions": state.executions, "accepted": state.accepted, "refused": state.refused,
            "slowest": round(state.slowest, 3), "findings": findings,
            "seconds": round(time.monotonic() - began, 1),
        }  # fmt: skip
        told.write_text(json.dumps(measured))

    def one(content: bytes) -> None:
        nonlocal noted
        runner(content)
        if time.monotonic() - noted > 1:
            note()
            noted = time.monotonic()

    for content in begin:
        runner.warm(content)
        one(content)
    if asked.blind:
        chance = random.Random(asked.seed)
        while time.monotonic() - began < asked.seconds:
            one(change(chance.choice(begin), chance))
        note()
        return
    atheris: Any = import_module("atheris")

    def custom(data: bytes, most: int, seed: int) -> bytes:
        return change(bytes(data), random.Random(seed))[:most]

    corpus = ROOT / "tests" / "faults" / "corpus" / name
    with tempfile.TemporaryDirectory() as grown:
        options = [
            f"-max_total_time={asked.seconds:.0f}", f"-seed={asked.seed}", "-timeout=120",
            "-rss_limit_mb=6000", f"-max_len={2**18}", "-print_final_stats=0", "-verbosity=0",
        ]  # fmt: skip
        atheris.Setup([__file__, *options, grown, str(corpus)], one, custom_mutator=custom)
        with contextlib.suppress(SystemExit):
            atheris.Fuzz()
    note()


def prepared(name: str, *, guided: bool) -> tuple[Any, Any, list[bytes]]:
    """The runner of a reader, the change of its inputs, and those to begin with."""
    instrumented: Any = contextlib.nullcontext()
    if guided:
        atheris: Any = import_module("atheris")
        # What is instrumented must not have been imported before.
        packages = ["datafree.bounds", "datafree.pictures", "datafree.data", "datafree.detection"]
        packages += ["datafree.models", "datafree.config", "datafree.runs.stored"]
        packages += ["datafree.generators", "datafree.images"]
        instrumented = atheris.instrument_imports(include=packages, enable_loader_override=False)
    with instrumented:
        mutations, readers, watch = (import_module(n) for n in ("mutations", "readers", "watch"))
    place = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-", dir=place)) / "in"
    runner = watch.Runner(readers.prepare(name, folder), watch.Watch(folder))

    def change(content: bytes, chance: random.Random) -> bytes:
        return mutations.mutate(content, readers.READERS[name].kind, chance)

    return runner, change, readers.corpus(name)


def environment() -> dict[str, str]:
    """Machine, versions, date."""
    names = ("torch", "onnx", "safetensors", "pillow", "numpy")
    return {
        "cpu": platform.machine(), "python": platform.python_version(),
        **{name: version(name) for name in names}, "date": f"{date.today():%Y-%m-%d}",
    }  # fmt: skip


def commit() -> str:
    """Of the repository."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
