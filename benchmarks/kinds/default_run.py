"""What a run with its defaults costs, from the command to a checked ONNX file."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.kinds.base import Bench, Kind
from benchmarks.kinds.speed import unpack
from benchmarks.networks import TRAINED_HERE, Network, trained_here
from datafree.config import RunConfig
from datafree.errors import DatafreeError
from datafree.evaluate import top1
from datafree.export.onnx import Onnx
from datafree.zoo import ZOO


class DefaultRun(Kind):
    """Seconds of the processor that `datafree quantize` takes, and top-1 of the file it writes.

    The command is given network and seed and chooses all else by its defaults. It runs in a process
    of its own, with one thread; `processor_seconds` are those of this process, imports and all.
    `stages` are seconds by the clock, as the run tells them. The file is measured afterwards.
    """

    library: str | None = None
    """Commit whose library is measured; None is the one in `src`."""

    def measure(self, config: RunConfig, bench: Bench) -> dict[str, Any]:
        """See the base class."""
        network = bench.network(config)
        with TemporaryDirectory() as name:
            folder = Path(name)
            root = bench.place.root if self.library is None else folder
            if self.library is not None:
                unpack(self.library, bench.place.root, folder)
            path = os.pathsep.join([str(root / "src"), *sys.path])
            source = source_of(config.model, network, bench)
            command = [
                sys.executable, "-m", "datafree", "quantize", *source,
                "--seed", str(config.seed), "--output", str(folder / "run"),
            ]  # fmt: skip
            spent, _ = timed(command, {"PYTHONPATH": path})
            told = json.loads((folder / "run" / "metrics.json").read_text(encoding="utf-8"))
            return {
                "processor_seconds": spent,
                "stages": {name: round(value, 1) for name, value in told["seconds"].items()},
                **of_file(folder / "run" / "student.onnx", network, config.limit),
            }


def source_of(name: str, network: Network, bench: Bench) -> list[str]:
    """The network as the command takes it: its name, or its file and how images are normalised."""
    if name in ZOO:
        return [name]
    spec = network.teacher.spec
    shape, mean, std = (",".join(map(str, values)) for values in (spec.shape, spec.mean, spec.std))
    normalised = ["--mean", mean, "--std", std]
    if name not in TRAINED_HERE:
        return [str(bench.place.data(f"exported/{name}.pt2")), *normalised]
    source, weights = trained_here(name, bench.place).source, bench.place.weights(name)
    return [source, "--weights-file", str(weights), "--input-shape", shape, *normalised]


def timed(
    command: Sequence[str], environment: Mapping[str, str], given: str = ""
) -> tuple[float, str]:
    """Seconds of the processor that a command takes with one thread, and what it prints.

    Args:
        command: it and its arguments.
        environment: what it is told besides the environment of this process.
        given: its standard input.

    Raises:
        DatafreeError: there is none, or it fails; the message has the last line that it told.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, text=True, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )  # fmt: skip
    except OSError as error:
        raise DatafreeError(f"cannot run {command[0]}: {error.strerror}") from error
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        told = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise DatafreeError(f"the run in a process of its own failed: {told}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def of_file(path: Path, network: Network, limit: int | None) -> dict[str, Any]:
    """Top-1 of an ONNX file in onnxruntime, integer products exact, and how many images tell it."""
    found = top1({"file": Onnx().run(path)}, network.batches(limit))
    return {"top1": found.top1["file"], "test_images": found.images}
