"""The float network by itself."""

from __future__ import annotations

from typing import Any

from benchmarks.kinds.base import Bench, Kind
from datafree.config import RunConfig
from datafree.evaluate import top1
from datafree.graph.fold import fold_batch_norms
from datafree.tensors import fast_layout


class TeacherAlone(Kind):
    """Top-1 of the float network."""

    def measure(self, config: RunConfig, bench: Bench) -> dict[str, Any]:
        """See the base class."""
        network = bench.network(config)
        folded = fast_layout(fold_batch_norms(network.graph))
        found = top1({"teacher": folded}, network.batches(config.limit))
        return {"top1": found.top1["teacher"], "test_images": found.images}
