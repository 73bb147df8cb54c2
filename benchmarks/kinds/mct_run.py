"""What the Model Compression Toolkit's own way from a network to an ONNX file costs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.kinds.base import Bench, Kind
from benchmarks.kinds.default_run import of_file, timed
from benchmarks.runner import LeftOutError
from datafree.config import RunConfig

INTERPRETER = "DATAFREE_MCT"
"""Variable of the environment: the Python of an environment that has the toolkit."""


class MCTRun(Kind):
    """Seconds of the processor from network to file, and top-1 of the file.

    The toolkit makes as many images as a run has by default, quantizes with them and writes the
    file, each as it does by default; it runs in a process of its own, with one thread.
    `processor_seconds` are those of this process, imports and all, and `stages` its parts. The file
    is measured afterwards, as that of `default_run` is.
    """

    def measure(self, config: RunConfig, bench: Bench) -> dict[str, Any]:
        """See the base class."""
        python = os.environ.get(INTERPRETER)
        if not python:
            raise LeftOutError(f"{INTERPRETER} names no Python with model-compression-toolkit")
        network = bench.network(config)
        with TemporaryDirectory() as name:
            path = Path(name) / "student.onnx"
            request = {
                "networks": str(bench.place.shared / "data" / "networks.py"),
                "model": config.model, "images": config.images, "seed": config.seed,
                "pixels": network.teacher.spec.shape[-1], "onnx": str(path),
            }  # fmt: skip
            # -P: modules beside the script are not what the toolkit imports
            command = [python, "-P", str(bench.place.house / "mct_alone.py")]
            spent, told = timed(command, {"PYTHONPATH": ""}, json.dumps(request))
            stages = json.loads(told.splitlines()[-1])
            return {
                "processor_seconds": spent,
                "stages": {name: round(value, 1) for name, value in stages.items()},
                **of_file(path, network, config.limit),
            }
