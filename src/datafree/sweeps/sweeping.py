"""A sweep from its file to its table: what is finished stays, what is missing is computed."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datafree.errors import SweepError
from datafree.progress import Progress, beside, in_words, silent
from datafree.runs.folder import METRICS
from datafree.sweeps.computing import Outcome, job_of
from datafree.sweeps.engines import outcomes
from datafree.sweeps.folder import Folder
from datafree.sweeps.options import SweepOptions
from datafree.sweeps.plan import Cell, Plan, check_cells, check_code, load_plan, plan_of, shard
from datafree.sweeps.table import Row, rows_of, write_table


@dataclass(frozen=True)
class Swept:
    """What a sweep gives back.

    Attributes:
        folder: of the sweep.
        rows: of all cells, in the order of the file, other parts' too.
        text: the table for people.
        computed: number of cells that this call computed; all others were there or failed.
    """

    folder: Path
    rows: tuple[Row, ...]
    text: str
    computed: int

    def lines(self) -> list[dict[str, Any]]:
        """The cells as plain values, as ``table.jsonl`` has them."""
        return [row.plain() for row in self.rows]


def sweep(
    source: Path | Mapping[str, Any],
    options: SweepOptions,
    output: Path | None = None,
    *,
    trust_code: bool = False,
    progress: Progress = silent,
    tell: Callable[[str], None] | None = None,
) -> Swept:
    """Compute all cells of a sweep that are not finished, and write its table.

    Args:
        source: file of the sweep, or what one says.
        options: where cells are computed.
        output: folder to write; None is named after the file.
        trust_code: Python code that the file names may run.
        progress: shows how many cells are done.
        tell: called with a line for every cell that has ended.

    Raises:
        SweepError: cells failed, or their verdicts are what `fail_below` does not take; all others
            were computed. The error has what there is.
        UntrustedCodeError: the file names code, and `trust_code` is not set.
        ConfigError: the file, a cell or an option is wrong; nothing was computed.
    """
    plan, where = _plan(source)
    cells = plan.runs(where)
    if isinstance(source, Path):
        check_code(cells, source, trust_code=trust_code)
    check_cells(cells, where)
    folder = Folder(output or (Path(source.stem) if isinstance(source, Path) else Path("sweep")))
    for cell in cells:
        folder.check_same(cell)
    folder.claim(plan)
    own = shard(cells, options.shard)
    computed = _computed(own, folder, options, progress, tell or _unheard)
    rows = rows_of(folder, cells)
    swept = Swept(folder.path, rows, write_table(folder, rows), computed)
    names = {cell.name for cell in own}
    return checked(swept, [row for row in rows if row.cell.name in names])


def _computed(
    cells: tuple[Cell, ...],
    folder: Folder,
    options: SweepOptions,
    progress: Progress,
    say: Callable[[str], None],
) -> int:
    """Compute those of `cells` that are not finished; how many were computed."""
    rows, call = rows_of(folder, cells), uuid.uuid4().hex
    done = sum(row.status == "finished" for row in rows)
    if done:
        say(f"{done} of {len(rows)} cells are finished")
    # A finished run with a damaged file is told at the end, not replaced unasked.
    jobs = [
        job_of(row.cell, folder, threads=options.cpus_per_task, retries=options.retries, call=call)
        for row in rows
        if row.status != "finished" and not (folder.cell(row.cell.name) / METRICS).exists()
    ]
    if not jobs:
        return 0
    labels, computed = {job.name: job.label for job in jobs}, 0
    with (
        progress("cells", len(jobs)) as step,
        closing(outcomes(jobs, options, beside(step))) as found,
    ):
        for outcome in found:
            computed += outcome.status == "computed"
            say(_line(outcome, labels))
            step(1)
    return computed


def checked(swept: Swept, rows: list[Row]) -> Swept:
    """`swept`, unless some of `rows` are not what was asked for.

    Raises:
        SweepError: the error has `swept`.
    """
    lost = [row for row in rows if row.status != "finished"]
    below = [row for row in rows if row.below]
    if not (lost or below):
        return swept
    first = (lost or below)[0]
    why = first.error or ("it was not computed" if lost else "its verdict is below fail_below")
    count = f"{len(lost or below)} of {len(rows)} cells"
    what = "failed or are missing" if lost else "have verdicts below fail_below"
    text = f"{count} {what}, the first is {first.cell}: {why}"
    raise SweepError(text, swept, verdicts=not lost)


def _plan(source: Path | Mapping[str, Any]) -> tuple[Plan, str]:
    if isinstance(source, Path):
        return load_plan(source), f"sweep {source}"
    return plan_of(source, "sweep"), "sweep"


def _line(outcome: Outcome, labels: Mapping[str, str]) -> str:
    label = labels[outcome.name]
    if outcome.status == "failed":
        return f"failed: {label}: {outcome.error}"
    if outcome.status == "found":
        return f"found: {label}: another process has computed it"
    return f"done: {label} ({in_words(outcome.seconds)})"


def _unheard(_line: str) -> None:
    """For whoever does not listen."""
