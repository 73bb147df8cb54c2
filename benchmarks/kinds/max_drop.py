"""The cheapest scheme whose estimated loss is within a bound, and what it really loses."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.kinds.base import Bench, Kind, on_processor
from datafree.config import RunConfig
from datafree.evaluate import top1
from datafree.graph.integer import as_computed
from datafree.graph.outputs import together
from datafree.runs.searching import carry_out


class MaxDrop(Kind):
    """Search without labels; the student that was found is then measured on labelled images."""

    bound: float = 1.0
    """Points of top-1 that may be lost."""

    def measure(self, config: RunConfig, bench: Bench) -> dict[str, Any]:
        """See the base class."""
        network = bench.network(config)
        changes = {
            "max_drop": self.bound, "data": None, "device": bench.device, "export": False,
            "report": False,
        }  # fmt: skip
        asked, began = config.model_copy(update=changes), time.perf_counter()
        found = on_processor(carry_out(asked, teacher=network.teacher, progress=bench.progress))
        seconds = time.perf_counter() - began
        search, verdict = found.metrics["search"], found.metrics["verdict"]
        student = as_computed(together(found.student))
        networks = {"teacher": together(found.teacher), "student": student}
        reached = top1(networks, network.batches(config.limit))
        return {
            "taken": search["taken"], "tried": len(search["tries"]), "tries": search["tries"],
            "estimated": verdict["loss"], "low": verdict["low"], "high": verdict["high"],
            "loss": reached.top1["teacher"] - reached.top1["student"],
            "top1": reached.top1["student"], "teacher": reached.top1["teacher"],
            "test_images": reached.images, "search_seconds": round(seconds, 1),
        }  # fmt: skip
