"""The usual kind: one run of the library, measured on labelled test images."""

from __future__ import annotations

from typing import Any

from torch import nn

from benchmarks.kinds.base import Bench, Kind
from benchmarks.measures import MEASURES, Made, training, undecided
from datafree.config import RunConfig
from datafree.errors import UnknownNameError
from datafree.evaluate import top1
from datafree.quant.modules import ActivationQuantizer

LAST = "student after the last step"


class Run(Kind):
    """Top-1, seconds by stage, what learning tells of itself, and what `measures` names."""

    measures: tuple[str, ...] = ()
    """Names in `benchmarks.measures`."""
    off: str | None = None
    """Activation quantizer that is switched off before the student is measured."""

    def measure(self, config: RunConfig, bench: Bench) -> dict[str, Any]:
        """See the base class."""
        for name in self.measures:
            if name not in MEASURES:
                raise UnknownNameError("measure", name, MEASURES)
        network = bench.network(config)
        result = self.run(config, bench)
        told = result.metrics["top1"]
        found = {"top1": told["student"], "teacher": told["teacher"]}
        if LAST in told:
            found["last"] = told[LAST]
        found["test_images"] = result.metrics["test_images"]
        found["stages"] = {name: round(value, 1) for name, value in result.seconds.items()}
        if self.off is not None:
            _switch_off(result.student, self.off)
            batches = network.batches(config.limit)
            found["top1"] = top1({"student": result.student}, batches).top1["student"]
        made = Made(result, network)
        if config.tuning is not None:
            found |= training(made)
        if config.rounding is not None:
            found |= undecided(made)
        for name in self.measures:
            found |= MEASURES[name](made)
        return found


def _switch_off(student: nn.Module, name: str) -> None:
    found = {n: m for n, m in student.named_modules() if isinstance(m, ActivationQuantizer)}
    if name not in found:
        raise UnknownNameError("activation quantizer", name, found)
    found[name].enabled = False
