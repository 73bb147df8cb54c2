"""What the cells of a sweep reached: a JSON line each, and a table with means over seeds."""

from __future__ import annotations

import io
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from datafree.errors import ConfigError
from datafree.files import write_text
from datafree.jsons import to_json
from datafree.runs.judging import verdict_in
from datafree.runs.page import label_of, size_in_words
from datafree.runs.stored import Stored
from datafree.sweeps.folder import Folder, digest, finished
from datafree.sweeps.plan import SEED, Cell

LINES, TEXT = "table.jsonl", "table.txt"
WIDTH = 80
_WORDS = ("good", "check", "poor")  # verdicts, the worst last
_MEASURES = {"top1": "top-1", "miou": "mIoU", "map": "mAP", "metric": "measure"}
_TOLD = 20  # cells that failed or are missing which are named


@dataclass(frozen=True)
class Row:
    """What became of a cell.

    Attributes:
        cell: of the sweep.
        status: `finished`, `failed`, or `missing` where nobody began it or has ended it.
        stored: the record of its run, where it is finished.
        error: why it failed; one line.
    """

    cell: Cell
    status: Literal["finished", "failed", "missing"]
    stored: Stored | None = None
    error: str = ""

    @property
    def below(self) -> bool:
        """Whether its verdict is what its `fail_below` does not take."""
        limit = self.cell.config.fail_below
        verdict = None if self.stored is None else verdict_in(self.stored.metrics)
        return limit is not None and verdict is not None and verdict.reaches(limit)

    def plain(self) -> dict[str, Any]:
        """As a line of JSON has it."""
        told: dict[str, Any] = {
            "cell": dict(self.cell.values), "status": self.status,
            "folder": f"cells/{self.cell.name}",
        }  # fmt: skip
        if self.stored is None:
            return told | ({"error": self.error} if self.error else {})
        metrics, record = self.stored.metrics, self.stored.record
        kept = (*_MEASURES, "test_images", "held_out", "verdict")
        return told | {
            "bits": label_of(self.cell.config), "policy": str(self.cell.config.policy),
            "digest": digest(record), "teacher": metrics["teacher"],
            "results": {name: metrics[name] for name in kept if name in metrics},
            "bytes": metrics.get("onnx", {}).get("bytes"),
            "seconds": round(_seconds(self.stored), 3),
            "processor": record.get("environment", {}).get("processor"),
        }  # fmt: skip


def rows_of(folder: Folder, cells: Iterable[Cell]) -> tuple[Row, ...]:
    """What the folder of a sweep has of `cells`; files of finished ones are verified."""
    return tuple(_row(folder, cell) for cell in cells)


def _row(folder: Folder, cell: Cell) -> Row:
    try:
        stored = finished(folder.cell(cell.name), cell.config)
    except ConfigError as error:
        return Row(cell, "failed", error=str(error))
    if stored is not None:
        return Row(cell, "finished", stored)
    error = folder.log(cell.name).error()
    return Row(cell, "failed" if error else "missing", error=error)


def write_table(folder: Folder, rows: Sequence[Row]) -> str:
    """Write both files of the table into the folder of a sweep; returns the text.

    Raises:
        OutputError: they cannot be written.
    """
    lines = "".join(to_json(row.plain(), LINES) + "\n" for row in rows)
    write_text(folder.path / LINES, lines)
    text = in_words(rows)
    write_text(folder.path / TEXT, text)
    return text


def in_words(rows: Sequence[Row]) -> str:
    """The table for people, `WIDTH` columns wide: a row for all seeds of the same settings."""
    axes = [axis for axis in dict(rows[0].cell.values) if axis != SEED] if rows else []
    shared = {axis: value for axis in axes if len(value := _values(rows, axis)) == 1}
    groups: dict[tuple[str, ...], list[Stored]] = {}
    for row in rows:
        if row.stored is not None:
            own = dict(row.cell.values)
            key = tuple(own[axis] for axis in axes if axis not in shared)
            groups.setdefault(key, []).append(row.stored)
    heads = [axis for axis in axes if axis not in shared]
    columns = {head: [key[k] for key in groups] for k, head in enumerate(heads)}
    columns |= _measured(list(groups.values()))
    done = sum(row.status == "finished" for row in rows)
    title = f"{done} of {len(rows)} cells are finished"
    fixed = [f"{axis} {next(iter(values))}" for axis, values in shared.items()]
    if "model" not in axes and len(models := {row.cell.config.model for row in rows}) == 1:
        fixed.insert(0, f"model {next(iter(models))}")
    title += "".join(f"; {one}" for one in fixed)
    table = Table(box=None, pad_edge=False, header_style="", title_style="")
    for k, head in enumerate(columns):
        table.add_column(head, overflow="fold", justify="left" if k < len(heads) else "right")
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*map(escape, cells))
    text = io.StringIO()
    console = Console(file=text, width=WIDTH, color_system=None, highlight=False)
    console.print(title, markup=False)
    if groups:
        console.print(table)
    for line in (*_notes(rows), *_open(rows)):
        console.print(line, markup=False)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def _values(rows: Sequence[Row], axis: str) -> set[str]:
    return {dict(row.cell.values)[axis] for row in rows}


def _measured(groups: Sequence[Sequence[Stored]]) -> dict[str, list[str]]:
    """The columns of what was measured that any group has something in."""
    columns = {
        "seeds": [str(len(group)) for group in groups],
        **{
            f"{title} {'float' if network == 'teacher' else 'student'}": [
                _mean([_reached(run, key, network) for run in group]) for group in groups
            ]
            for key, title in _MEASURES.items()
            for network in ("teacher", "student")
        },
        "same %": [_mean([_held(run, "agreement") for run in group]) for group in groups],
        "verdict": [_worst(group) for group in groups],
        "onnx": [_size(group[0]) for group in groups],
        "seconds": [_mean([_seconds(run) for run in group]) for group in groups],
    }
    return {head: cells for head, cells in columns.items() if any(cells)}


def _reached(run: Stored, key: str, network: str) -> float | None:
    return run.metrics.get(key, {}).get(network)


def _held(run: Stored, key: str) -> float | None:
    return run.metrics.get("held_out", {}).get(key)


def _seconds(run: Stored) -> float:
    return sum(run.record.get("seconds", {}).values())


def _size(run: Stored) -> str:
    size = run.metrics.get("onnx", {}).get("bytes")
    return "" if size is None else size_in_words(int(size))


def _worst(group: Sequence[Stored]) -> str:
    words = [v.word for run in group if (v := verdict_in(run.metrics)) is not None]
    return max(words, key=_WORDS.index) if words else ""


def _mean(values: Iterable[float | None]) -> str:
    """Mean, and standard deviation where there are several; empty where there are none."""
    found = [value for value in values if value is not None]
    if not found:
        return ""
    spread = f" ±{statistics.stdev(found):.1f}" if len(found) > 1 else ""
    return f"{statistics.fmean(found):.1f}{spread}"


def _notes(rows: Sequence[Row]) -> list[str]:
    """What keeps numbers from being comparable."""
    runs = [row for row in rows if row.stored is not None]
    teachers: dict[str, set[str]] = {}
    for row in runs:
        teachers.setdefault(row.cell.config.teacher.model_dump_json(), set()).add(
            str(row.stored.metrics["teacher"]) if row.stored else ""
        )
    notes: list[str] = []
    if any(len(digests) > 1 for digests in teachers.values()):
        notes.append("A network has changed between cells: the same name, other weights.")
    policies = sorted({str(row.cell.config.policy) for row in runs})
    if len(policies) > 1:
        notes.append(
            f"Layer policies differ ({', '.join(policies)}): numbers of different policies say"
            " nothing of methods."
        )
    return notes


def _open(rows: Sequence[Row]) -> list[str]:
    """Cells that failed or are missing, by name."""
    told = [
        f"{row.status}: {row.cell}{f': {row.error}' if row.error else ''}"
        for row in rows
        if row.status != "finished"
    ]
    told += [f"below what fail_below takes: {row.cell}" for row in rows if row.below]
    more = [f"and {len(told) - _TOLD} more, see {LINES}"] if len(told) > _TOLD else []
    return [*told[:_TOLD], *more]
