"""A recipe as a user runs it, with images of its own: what it gives and what it takes."""

from __future__ import annotations

from typing import Any

from benchmarks.kinds.base import Bench, Kind, with_recipe
from datafree.config import RunConfig
from datafree.runs.pipeline import run


class ByRecipe(Kind):
    """Top-1 and minutes of a run, from the captured network to the student.

    `minutes` has neither the measuring on test images nor the writing of files.
    """

    recipe: str
    """Of quantize."""

    def measure(self, config: RunConfig, bench: Bench) -> dict[str, Any]:
        """See the base class."""
        network = bench.network(config)
        config = with_recipe(config, self.recipe, network)
        result = run(config, teacher=network.teacher, progress=bench.progress)
        stages = {name: value for name, value in result.seconds.items() if name != "evaluation"}
        return {
            "top1": result.metrics["top1"]["student"],
            "teacher": result.metrics["top1"]["teacher"],
            "test_images": result.metrics["test_images"],
            "minutes": sum(stages.values()) / 60,
            "stages": {name: round(value, 1) for name, value in stages.items()},
        }
