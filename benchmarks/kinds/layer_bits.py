"""Is the layer that a run proposes the right one to give more bits?"""

from __future__ import annotations

from typing import Any

from benchmarks.kinds.base import Bench, Kind
from datafree.config import RunConfig
from datafree.runs.pipeline import Result

_WIDE = "W8A8"


class LayerBits(Kind):
    """Top-1 as it is, and where single layers have 8 bits: the proposed one, others to compare."""

    rounds: int = 3
    """How often the proposal of the student before is followed."""

    def measure(self, config: RunConfig, bench: Bench) -> dict[str, Any]:
        """See the base class."""
        first = self.run(config, bench, isolate=True)
        found: dict[str, Any] = {
            "top1": _top1(first), "teacher": first.metrics["top1"]["teacher"],
            "test_images": first.metrics["test_images"],
            "divergence": first.metrics["isolation"]["total"],
            "layer_seconds": round(first.seconds["layers"], 2), "proposed": [],
        }  # fmt: skip
        noise = first.metrics["sqnr_db"]
        noisiest = min(noise, key=noise.__getitem__)
        isolated, given = first.metrics["isolation"], dict[str, int | str]()
        for done in range(self.rounds):
            option = str(isolated.get("proposal", ""))
            choice = option.removeprefix("--layer-bits ")
            if choice == option:  # nothing to propose, or to leave a layer in float
                break
            path, _, width = choice.rpartition("=")
            given[path] = int(width) if width.isdecimal() else width
            wider = config.model_copy(update={"layer_bits": dict(given)})
            more = self.run(wider, bench, isolate=done + 1 < self.rounds)
            isolated = more.metrics.get("isolation", {})
            found["proposed"].append(option)
            found[f"top1_{done + 1}"] = _top1(more)
        other = config.model_copy(update={"layer_bits": {noisiest: _WIDE}})
        return found | {"noisiest": noisiest, "top1_noisiest": _top1(self.run(other, bench))}


def _top1(result: Result) -> float:
    return float(result.metrics["top1"]["student"])
