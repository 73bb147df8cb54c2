"""Where cells are computed: this process, several of this machine, or a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence

import torch

from datafree.progress import Progress
from datafree.sweeps.computing import Job, Outcome
from datafree.sweeps.engines import local
from datafree.sweeps.options import SweepOptions


def outcomes(jobs: Sequence[Job], options: SweepOptions, progress: Progress) -> Generator[Outcome]:
    """Compute `jobs`, and tell of each as soon as it has ended; closing it stops what runs.

    Args:
        jobs: a cell each.
        options: where and how many at a time.
        progress: of the cell at hand, where one process computes one after the other.

    Raises:
        ConfigError: the engine is not installed, or there is no such cluster.
    """
    if options.engine == "ray":
        from datafree.sweeps.engines import ray

        return ray.outcomes(jobs, options)
    workers = min(options.workers or _room(jobs, options), len(jobs))
    if workers <= 1:
        return local.one_by_one(jobs, progress)
    return local.outcomes(jobs, workers, options.retries)


def _room(jobs: Sequence[Job], options: SweepOptions) -> int:
    """How many cells this machine computes at the same time: one on a GPU."""
    if torch.cuda.is_available() and any(job.config["device"] != "cpu" for job in jobs):
        return 1
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(cores // options.cpus_per_task, 1)
