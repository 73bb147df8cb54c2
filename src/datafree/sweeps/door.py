"""Sweeps from Python: `datafree.sweep`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from datafree.config import build
from datafree.progress import Progress, silent
from datafree.progress.bars import Bars, progress_of
from datafree.sweeps.options import SweepOptions
from datafree.sweeps.sweeping import Swept
from datafree.sweeps.sweeping import sweep as carry_out_sweep


def sweep(  # noqa: PLR0913 - one for each option
    source: Path | str | Mapping[str, Any],
    *,
    output: Path | str | None = None,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    workers: int | None = None,
    cpus_per_task: int = 1,
    gpus_per_task: float = 0.0,
    retries: int = 2,
    shard: str | tuple[int, int] | None = None,
    trust_code: bool = False,
    progress: Progress | bool = silent,
) -> Swept:
    """Compute every cell of a sweep that is not finished: networks x methods x bits x seeds.

    Args:
        source: YAML file of the sweep, or what one says: ``{"base": {"images": 64}, "axes":
            {"model": ["digits_resnet8"], "bits": ["W8A8", "W4A4"], "seed": [0, 1, 2]}}``.
        output: folder to write, a run for every cell; None is named after the file.
        engine: ``"local"`` are processes on this machine, ``"ray"`` tasks of a Ray cluster.
        address: of the cluster; None is $RAY_ADDRESS, or a cluster for this call.
        workers: cells at the same time; None is one for every processor. 1 computes in this
            process.
        cpus_per_task: processors of a cell, which are its threads too.
        gpus_per_task: GPUs of a cell, which Ray gives out.
        retries: how often a cell is begun again whose process died.
        shard: one part only, ``"0/4"``; `datafree.sweeps.merging.merge_sweeps` makes them one.
        trust_code: Python code that the file names may run.
        progress: True shows bars; or see `datafree.progress`.

    Returns:
        Folder, rows and text of the table.

    Raises:
        SweepError: cells failed; all others were computed, and the error has them.
        ConfigError: the file, a cell or an option is wrong; nothing was computed.
    """
    given = {
        "engine": engine, "address": address, "workers": workers, "retries": retries,
        "cpus_per_task": cpus_per_task, "gpus_per_task": gpus_per_task, "shard": shard,
    }  # fmt: skip
    shown = progress_of(progress)
    return carry_out_sweep(
        source if isinstance(source, Mapping) else Path(source),
        build(SweepOptions, given, "sweep"), None if output is None else Path(output),
        trust_code=trust_code, progress=shown,
        tell=shown.say if isinstance(shown, Bars) else None,
    )  # fmt: skip
