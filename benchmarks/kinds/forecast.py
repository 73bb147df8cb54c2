"""What a run foretells of its time and memory, and what it then takes."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.kinds.base import Bench, Kind, with_recipe
from datafree.config import RunConfig
from datafree.runs.forecast import foretell
from datafree.runs.opening import open_run
from datafree.runs.pipeline import run


class ForecastAndActual(Kind):
    """Seconds foretold and taken, in all and by stage; GB of memory likewise.

    `ratio` is the time taken over the time foretold. The labelled test images are measured on, as
    by a user with data, and files are written. The forecast's own time stands in neither sum.
    """

    recipe: str
    """Of quantize."""

    def measure(self, config: RunConfig, bench: Bench) -> dict[str, Any]:
        """See the base class."""
        network = bench.network(config)
        config = with_recipe(config, self.recipe, network)
        started = time.perf_counter()
        begun = open_run(config, network.teacher, keep=True)
        found = foretell(begun, time.perf_counter() - started, written=True)
        with TemporaryDirectory() as name:
            folder = Path(name) / "run"
            result = run(config, teacher=network.teacher, folder=folder, progress=bench.progress)
        taken = sum(result.seconds.values())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        return {
            "foretold": found.total,
            "actual": taken,
            "ratio": taken / found.total,
            "foretold_stages": {name: round(value, 1) for name, value in found.seconds.items()},
            "stages": {name: round(value, 1) for name, value in result.seconds.items()},
            "foretold_gb": found.memory / 1e9,
            "actual_gb": peak,
            "top1": result.metrics["top1"]["student"],
            "teacher": result.metrics["top1"]["teacher"],
            "test_images": result.metrics["test_images"],
        }
