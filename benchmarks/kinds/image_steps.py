"""How many steps images take, and how long."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.kinds.base import Bench, Kind
from datafree.config import RunConfig
from datafree.graph.capture import to_device
from datafree.progress import Step
from datafree.runs.synthesizing import synthesize_images


class ImageSteps(Kind):
    """Mean steps of a batch until its end, and seconds of all by the clock and of the processor.

    Images are made anew, nothing is kept.
    """

    def measure(self, config: RunConfig, bench: Bench) -> dict[str, Any]:
        """See the base class."""
        network, taken = bench.network(config), list[int]()

        @contextmanager
        def counted(description: str, total: int) -> Generator[Step]:
            with bench.progress(description, total) as shown:

                def step(count: int) -> None:
                    taken.append(count)
                    shown(count)

                yield step

        graph = to_device(network.graph, torch.device(bench.device))
        began, processor = time.perf_counter(), time.process_time()
        made = synthesize_images(graph, network.teacher.spec, config, counted)
        spent = time.process_time() - processor
        # A batch that ends early tells the steps that it leaves out at once, in its last call.
        skipped = [count for count in taken if count > 1]
        return {
            "steps": taken.count(1) / max(len(skipped), 1) if skipped else taken.count(1),
            "seconds": time.perf_counter() - began,
            "processor_seconds": spent,
            "images": len(made),
        }
