"""Learned rounding that starts from the activation ranges of one network or the other."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.kinds.base import Bench, Kind
from datafree.calibrators.base import Calibrator, Observe, calibrate
from datafree.config import RunConfig
from datafree.evaluate import top1
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.reconstruction.base import Reconstructor
from datafree.runs.plan import make_method
from datafree.tensors import fast_layout

_CHUNK = 64


class Ranges(Kind):
    """Top-1 where the ranges were observed on the network that `observe` names."""

    observe: Observe = "float"
    """As of `datafree.calibrators.base.calibrate`; a run of the library takes `float`."""

    def measure(self, config: RunConfig, bench: Bench) -> dict[str, Any]:
        """See the base class."""
        assert config.rounding is not None  # noqa: S101 - the table names one
        learner: Reconstructor = make_method(config.rounding, "reconstruction", Reconstructor)
        rule: Calibrator = make_method(config.calibration, "calibrators", Calibrator)
        network, images = bench.network(config), self.images(config, bench).images
        folded = fast_layout(fold_batch_norms(network.graph))
        student = insert_quantizers(folded, config.scheme, network.teacher.spec)
        calibrate(student, images.split(_CHUNK), rule, observe=self.observe)
        started = time.perf_counter()
        learner.reconstruct(folded, student, images, seed=config.seed, progress=bench.progress)
        seconds = time.perf_counter() - started
        found = top1({"student": student}, network.batches(config.limit))
        told = {"top1": found.top1["student"], "test_images": found.images}
        return told | {"learning_seconds": round(seconds, 1)}
