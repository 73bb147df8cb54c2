"""Commands under faults: killed, stopped, out of room, without permission, without a folder, twice.

Every try is a process of its own, forked from this one, that carries a command out in a folder of
its own while something happens to it at a random moment. Afterwards nothing may be torn, a success
has to be one, no traceback may show, and the same command without the fault has to end with the
very files that it writes undisturbed, having used the batches that were finished.

By hand, for the record: ``python tests/faults/harness.py --tries 12 --record FILE``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from afterwards import Ended, Undisturbed, differing, digests, finished_batches, judged, made_again

from datafree.cli.app import main

_MADE = ("--method", "zeroq", "--images", "16", "-o", "batch_size=4", "-o", "iterations=25")
_QUIET = ("--holdout", "8", "--no-isolate", "--no-latency", "--no-report")
_STILL = (*_QUIET, "--no-export")
_NETWORK = "digits_resnet8"
COMMANDS: dict[str, tuple[str, ...]] = {
    "quantize": ("quantize", _NETWORK, *_MADE, *_QUIET, "--bits", "W4A8", "--output", "out"),
    "quantize, adaround": (
        "quantize", _NETWORK, *_MADE, *_STILL, "--bits", "W4A8", "--output", "out",
        "--reconstruction", "adaround", "--reconstruction-option", "iterations=20",
    ),
    "quantize, dfqf": (
        "quantize", _NETWORK, *_STILL, "--bits", "W4A4", "--training", "dfqf", "--output", "out",
        "--training-option", "warmup=3", "--training-option", "iterations=6",
        "--training-option", "batch_size=8", "--images", "8",
    ),
    "quantize --force": (
        "quantize", _NETWORK, *_MADE, *_STILL, "--bits", "W2A8", "--output", "run", "--force",
    ),
    "quantize --average-bits": (
        "quantize", _NETWORK, *_MADE, *_STILL, "--average-bits", "4", "--output", "out",
    ),
    "synthesize": ("synthesize", _NETWORK, *_MADE, "--output", "out.safetensors"),
    "export": ("export", "run", "--output", "out.onnx"),
    "evaluate": ("evaluate", "run", "--data", "test.npz"),
    "report": ("report", "run"),
}  # fmt: skip
"""What is carried out; `run` is a finished run and `test.npz` labelled images."""
FAULTS = ("kill", "terminate", "interrupt", "full", "size", "read-only", "vanished", "twice")
_UNTIL = 300  # seconds a try may take


Fault = Callable[[int], float]
"""What happens to a process, by its number; returns when it did."""


@dataclass
class Table:
    """What was seen, by command and fault.

    Attributes:
        tries: how many.
        refused: of these ended with a line instead of a result.
        wrong: what should not have been, a line each.
    """

    tries: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    refused: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    wrong: list[str] = field(default_factory=list[str])


class Harness:
    """Tries in folders beneath `place`, drawn from `seed`."""

    def __init__(self, place: Path, seed: int = 0) -> None:
        """Make the finished run and the images that commands work on."""
        self.place, self.random = place, random.Random(seed)
        self.start = place / "start"
        self.start.mkdir(parents=True)
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (16, 8, 8), np.uint8)
        np.savez(self.start / "test.npz", images=images, labels=rng.integers(0, 10, 16))
        words = ("quantize", _NETWORK, *_MADE, *_STILL, "--bits", "W8A8", "--output", "run")
        words += ("--keep-teacher",)
        ended = self.carry_out(words, self.start)
        assert ended.code == 0, ended.said
        self.known: dict[str, Undisturbed] = {}
        told = self.place / "modules"
        with self.copied() as folder:
            self.carry_out(COMMANDS["quantize"], folder, told=told)
        for name in told.read_text().split():  # once for all processes to come
            with suppress(Exception):
                importlib.import_module(name)

    def carry_out(
        self, words: tuple[str, ...], folder: Path, fault: Fault | None = None,
        size: int | None = None, told: Path | None = None,
    ) -> Ended:  # fmt: skip
        """Run a command in `folder`; `fault` is told the process, `size` limits its files.

        The names of the modules that it imports are written to the file `told`.
        """
        child, said = begun(words, folder, size, told)
        began = time.monotonic()
        happened = began if fault is None else fault(child)
        while True:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                break
            if time.monotonic() - began > _UNTIL:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return Ended(-999, "it hung", 0.0)
            time.sleep(0.005)
        return Ended(os.waitstatus_to_exitcode(status), read_all(said), time.monotonic() - happened)

    def undisturbed(self, name: str) -> Undisturbed:
        """How command `name` ends by itself; found once."""
        if name not in self.known:
            with self.copied() as folder:
                began = time.monotonic()
                ended = self.carry_out(COMMANDS[name], folder)
                assert ended.code == 0, ended.said
                writes = written_to(COMMANDS[name])
                seconds = time.monotonic() - began
                self.known[name] = Undisturbed(seconds, digests(folder), writes)
        return self.known[name]

    @contextmanager
    def copied(self) -> Generator[Path]:
        """A fresh folder with the finished run in it."""
        with tempfile.TemporaryDirectory(dir=self.place) as name:
            folder = Path(name) / "here"
            shutil.copytree(self.start, folder)
            yield folder

    def attempt(self, name: str, fault: str, table: Table) -> None:
        """One try of command `name` under `fault`, judged into `table`."""
        expected = self.undisturbed(name)
        moment = self.random.uniform(0, 1.1) * expected.seconds
        with self.copied() as folder, prepared(folder, fault, self.random):
            words = COMMANDS[name]
            if fault == "twice":
                ended = self._twice(words, folder, moment)
            else:
                size = self.random.choice((0, 300, 3000, 30_000)) if fault == "size" else None
                happens = acting(fault, folder, moment, words)
                ended = self.carry_out(words, folder, happens, size)
            batches = finished_batches(folder)
            removed = vanishing(words) if fault == "vanished" else None
            wrong = judged(ended, folder, expected, removed)
            relieved(folder, fault)
            if fault == "vanished":
                shutil.copytree(self.start, folder, dirs_exist_ok=True)
            again = self.carry_out(words, folder)
            done_before = ended.code == 0 and "exists" in again.said
            if again.code and not done_before:
                wrong.append(f"afterwards: {again.said.strip()[-300:]}")
            elif digests(folder) != expected.files:
                wrong.append(f"afterwards other files: {differing(folder, expected)}")
            lost = [path.name for path, when in batches.items() if made_again(path, when)]
            if lost and fault != "vanished":
                wrong.append(f"batches made again: {', '.join(lost)}")
        table.tries[name, fault] += 1
        table.refused[name, fault] += ended.code != 0
        table.wrong += [f"{name}, {fault} at {moment:.2f} s: {text}" for text in wrong]

    def _twice(self, words: tuple[str, ...], folder: Path, moment: float) -> Ended:
        """The command, with another one of the same words that starts a moment later."""
        other: list[tuple[int, int]] = []

        def second(_: int) -> float:
            time.sleep(min(moment, 1.0))
            other.append(begun(words, folder, None))
            return time.monotonic()

        ended = self.carry_out(words, folder, second)
        child, said_second = other[0]
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said = read_all(said_second)
        if ended.code and not code:
            return Ended(0, said, 0.0)
        return Ended(ended.code, ended.said + (said if "Traceback" in said else ""), 0.0)


def begun(
    words: tuple[str, ...], folder: Path, size: int | None, told: Path | None = None
) -> tuple[int, int]:
    """A process that carries a command out, and the end of a pipe where it is heard."""
    said, errors = os.pipe()  # a file would be within the limit of sizes
    child = os.fork()
    if not child:
        _become(words, folder, errors, size, told)
    os.close(errors)
    return child, said


def read_all(said: int) -> str:
    """What a process that has ended wrote into its pipe."""
    with os.fdopen(said, "rb") as pipe:
        return pipe.read().decode(errors="replace")


def _become(
    words: tuple[str, ...], folder: Path, errors: int, size: int | None, told: Path | None
) -> None:
    """Be the command, in a process that was forked for it; never returns."""
    code = 99
    try:
        # A shell's background processes ignore Ctrl-C, and so would their children.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(folder)
        os.dup2(errors, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        sys.argv = ["datafree", *words]
        main()
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:  # noqa: BLE001 - it is what the tries look for
        import traceback

        os.write(2, traceback.format_exc().encode())
    finally:
        if told is not None:
            told.write_text("\n".join(sys.modules))
        os._exit(code)


def acting(fault: str, folder: Path, moment: float, words: tuple[str, ...]) -> Fault | None:
    """What happens to a process at its `moment`; None where something was there from the start."""
    signals = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}

    def act(process: int) -> float:
        time.sleep(moment)
        if _has_ended(process):
            return time.monotonic()
        if fault in signals:
            os.kill(process, signals[fault])
        elif fault == "read-only":
            _protect(folder)
        elif fault == "vanished":
            for name in (vanishing(words), f".{vanishing(words)}-unfinished"):
                shutil.rmtree(folder / name, ignore_errors=True)
        return time.monotonic()

    return None if fault in ("full", "size") else act


def written_to(words: tuple[str, ...]) -> str:
    """The file or folder that a command writes; empty where it writes none."""
    if "--output" in words:
        return words[words.index("--output") + 1]
    return "run" if words[0] == "report" else ""


def vanishing(words: tuple[str, ...]) -> str:
    """The folder that is taken away from a command."""
    return "run" if "run" in words else "out"


def _has_ended(process: int) -> bool:
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


@contextmanager
def prepared(folder: Path, fault: str, draws: random.Random) -> Generator[None]:
    """`folder` as a small disk of its own, for the faults of disks."""
    if fault not in ("full", "read-only"):
        yield
        return
    kept = folder.with_name("kept")
    folder.rename(kept)
    folder.mkdir()
    used = sum(path.stat().st_size + 4096 for path in kept.rglob("*"))
    room = draws.choice((8, 40, 120, 400, 900)) * 1024 if fault == "full" else 50 << 20
    mounted("-t", "tmpfs", "-o", f"size={used + room}", "tmpfs", str(folder))
    try:
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _protect(folder: Path) -> None:
    """Make the disk read-only, as soon as no file on it is open for writing."""
    until = time.monotonic() + _UNTIL
    while True:
        try:
            return mounted("-o", "remount,ro", str(folder))
        except subprocess.CalledProcessError:
            if time.monotonic() > until:
                raise
            time.sleep(0.002)


def relieved(folder: Path, fault: str) -> None:
    """Take the fault away."""
    if fault == "full":
        mounted("-o", "remount,size=50m", str(folder))
    elif fault == "read-only":
        mounted("-o", "remount,rw", str(folder))


def mounted(*words: str) -> None:
    """Carry out ``mount``, which takes the rights of root."""
    subprocess.run(["mount", *words], check=True, capture_output=True)


def can_mount() -> bool:
    """Whether disks of our own can be made here."""
    with tempfile.TemporaryDirectory() as name:
        try:
            mounted("-t", "tmpfs", "-o", "size=64k", "tmpfs", name)
        except (OSError, subprocess.CalledProcessError):
            return False
        subprocess.run(["umount", name], check=True)
    return True


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=1, help="of every command under every fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, help="JSON file to write")
    parser.add_argument("--command", action="append", choices=list(COMMANDS))
    parser.add_argument("--fault", action="append", choices=FAULTS)
    given = parser.parse_args()
    table, began = Table(), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        harness = Harness(Path(name) / "tries", given.seed)
        for _ in range(given.tries):
            for command in given.command or COMMANDS:
                for fault in given.fault or FAULTS:
                    harness.attempt(command, fault, table)
            told = {
                "seed": given.seed, "seconds": round(time.monotonic() - began),
                "tries": sum(table.tries.values()), "wrong": table.wrong,
                "cells": [
                    {"command": command, "fault": fault, "tries": count,
                     "ended early": table.refused[command, fault]}
                    for (command, fault), count in table.tries.items()
                ],
            }  # fmt: skip
            if given.record:
                given.record.write_text(json.dumps(told, indent=1) + "\n")
            print(told["tries"], told["seconds"], *table.wrong[-9:], sep="\n", flush=True)  # noqa: T201


if __name__ == "__main__":
    _main()
