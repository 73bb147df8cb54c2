"""How much memory a run takes at its peak, and where: measured in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

from torch import nn

import datafree
from benchmarks import networks
from benchmarks.kinds.base import Bench, Kind
from benchmarks.place import Place
from datafree.config import RunConfig
from datafree.errors import DatafreeError
from datafree.models import from_module
from datafree.runs.pipeline import run
from datafree.tensors import release_memory

_LIBRARY = Path(datafree.__file__).parent
_MB = 1e6
_EVERY = 0.005  # seconds between two looks at the process
_SMALL = {
    "model": "digits_resnet8", "method": "noise", "images": 4, "holdout": 4, "latency": False,
}  # fmt: skip


class Memory(Kind):
    """The most memory a run holds, from the network in memory to all files, in its own process.

    `weights` are the bytes of the float parameters and `imports` what the process holds besides
    these when it begins, all libraries loaded by a run of the small built-in network; both in MB.
    `peak` is the most it held later, less the imports, in multiples of the weights: the network of
    whoever calls is 1 of them. `where` says what the library computed at that moment.
    """

    def measure(self, config: RunConfig, bench: Bench) -> dict[str, Any]:
        """See the base class."""
        environment = {
            **os.environ, "PYTHONPATH": os.pathsep.join(sys.path),
            "DATAFREE_SHARED": str(bench.place.shared),
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", f"from {__name__} import child; child()"],
            input=config.model_dump_json(), capture_output=True, text=True, env=environment,
            check=False,
        )  # fmt: skip
        if done.returncode:
            told = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
            raise DatafreeError(f"the run in a process of its own failed: {told}")
        return json.loads(done.stdout.splitlines()[-1])


def child() -> None:
    """Read a configuration from the standard input, and print what was measured as JSON."""
    warnings.simplefilter("ignore")
    config = RunConfig.model_validate_json(sys.stdin.read())
    print(json.dumps(measured(config, Place.here())))  # noqa: T201 - how processes talk


def measured(config: RunConfig, place: Place) -> dict[str, Any]:
    """What `Memory` tells, of a run in this process.

    Args:
        config: of the run; its `model` is a name of `benchmarks.networks`.
        place: of networks.
    """
    teacher = networks.load(config.model, place).teacher
    assert isinstance(teacher.model, nn.Module)  # noqa: S101 - networks of libraries are modules
    weights = sum(p.numel() * p.element_size() for p in teacher.model.parameters()) / _MB
    spec = teacher.spec

    def quantized(config: RunConfig, given: nn.Module | None) -> None:
        with TemporaryDirectory() as folder:
            taken = None if given is None else from_module(
                given, input_shape=spec.shape, mean=spec.mean, std=spec.std
            )  # fmt: skip
            run(config, teacher=taken, folder=Path(folder) / "run")

    small = {**_SMALL, "target": config.target, "bits": config.bits}
    quantized(RunConfig.model_validate(small), None)
    release_memory(teacher.model)
    imports = _resident() - weights
    began = time.monotonic()
    with watched() as seen:
        quantized(config.model_copy(update={"latency": False}), teacher.model)
    return {
        "weights": weights,
        "imports": imports,
        "peak": (seen.most - imports) / weights,
        "where": seen.where,
        "places": {
            place: round((most - imports) / weights, 2)
            for place, most in sorted(seen.places.items(), key=lambda item: -item[1])[:8]
        },
        "seconds": round(time.monotonic() - began, 1),
    }


@dataclass
class Seen:
    """The most that was held, in MB, and where the library was at that moment.

    Attributes:
        most: of all moments.
        where: the library was then.
        places: the most by where the library was.
    """

    most: float = 0.0
    where: str = ""
    places: dict[str, float] = field(default_factory=dict[str, float])

    def look(self, frame: FrameType | None) -> None:
        """Take in this moment, in which the caller is at `frame`."""
        held = _resident()
        place = _place(frame)
        self.places[place] = max(held, self.places.get(place, 0.0))
        if held > self.most:
            self.most, self.where = held, place


@contextmanager
def watched() -> Generator[Seen]:
    """What this process holds at most meanwhile, looked at from a thread beside the caller's."""
    seen, over = Seen(), threading.Event()
    main = threading.get_ident()

    def watch() -> None:
        while not over.wait(_EVERY):
            frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage]
            seen.look(frames.get(main))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def _place(frame: FrameType | None) -> str:
    """The innermost function of the library, ``graph/integer.py: run``."""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(_LIBRARY):
            return f"{path.relative_to(_LIBRARY).as_posix()}: {frame.f_code.co_name}"
        frame = frame.f_back
    return "outside"


def _resident() -> float:
    """Memory of this process that is really there, in MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / _MB
