"""A run that is only planned: everything settled and foretold, nothing made."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from datafree.config import RunConfig
from datafree.progress import Progress, silent, waiting
from datafree.runs.folder import refuse
from datafree.runs.forecast import Forecast, foretell
from datafree.runs.opening import open_run


@dataclass(frozen=True)
class Planned:
    """What a run would do.

    Attributes:
        config: with the methods that fit the network.
        images: number it would be calibrated with.
        notes: what a user should know of the network.
        forecast: time and memory.
    """

    config: RunConfig
    images: int
    notes: tuple[str, ...]
    forecast: Forecast


def plan_run(
    config: RunConfig, folder: Path, *, force: bool = False, progress: Progress = silent
) -> Planned:
    """Find out whatever can be known of a run before it is made; nothing is written.

    Args:
        config: of the run.
        folder: it would be written to.
        force: it would replace an earlier run there.
        progress: shown meanwhile.

    Raises:
        DatafreeError: whatever the run itself would refuse before its long stages.
    """
    refuse(folder, config, force)
    started = time.perf_counter()
    begun = open_run(config, keep=True, progress=progress)
    passed = time.perf_counter() - started
    with waiting(progress, "forecast"):
        forecast = foretell(begun, passed, written=True)
    images = begun.config.images if begun.images is None else len(begun.images)
    return Planned(begun.config, images, tuple(begun.notes), forecast)
