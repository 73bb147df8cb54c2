"""Records: one JSON line for every cell that was measured."""

from __future__ import annotations

import json
import os
import subprocess
import time
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from benchmarks.place import Place
from benchmarks.table import SEED, Cell, Change, Table
from datafree.config import Frozen


class Record(Frozen):
    """What was measured of one cell, by what and where."""

    table: str
    """Its table."""
    cell: dict[str, str | int]
    """Axis and name of the value; `seed`."""
    measured: dict[str, Any]
    """Numbers, and whatever else was found."""
    seconds: float | None = None
    """That it took; of records from before the house, what their script timed."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """What else the cell was at that time: fields that all cells of its table share."""
    environment: dict[str, Any]
    """Machine, versions, date."""
    command: str = ""
    """That measured it."""
    commit: str = ""
    """Of the repository when it was measured; of older records, the one that brought them."""

    def line(self) -> str:
        """As it stands in the file."""
        return json.dumps(self.model_dump(mode="json"), ensure_ascii=False) + "\n"

    def value(self, name: str) -> Any:
        """What was measured under `name`, dots between names within names; None if nothing was."""
        found: Any = self.measured
        for part in name.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return found

    def of(self, table: Table) -> Cell:
        """The cell of `table` that it describes."""
        values = tuple((axis, str(self.cell[axis])) for axis in table.axes)
        return Cell(values, int(self.cell[SEED]))

    def overtaken(self, table: Table) -> list[Change]:
        """Changes of the library since it was measured that concern it."""
        cell, day = self.of(table), date.fromisoformat(str(self.environment["date"]))
        return [c for c in table.changed if day < c.date and cell.within(c.where)]


def read(path: Path) -> tuple[Record, ...]:
    """The records of a file, in order; a line that a crash cut off is left out."""
    if not path.exists():
        return ()
    found: list[Record] = []
    for line in path.read_bytes().split(b"\n"):
        try:
            found.append(Record.model_validate_json(line))
        except ValidationError:
            continue
    return tuple(found)


def append(path: Path, record: Record) -> None:
    """Add a record with one write, so that several processes can fill one file.

    A line that a crash cut off is ended first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            cut_off = file.read(1) != b"\n"
        else:
            cut_off = False
        file.write(("\n" * cut_off + record.line()).encode())
        os.fsync(file.fileno())


def latest(table: Table, place: Place) -> dict[Cell, Record]:
    """The last record of every cell of `table`."""
    return {record.of(table): record for record in read(place.records(table.name))}


def environment() -> dict[str, Any]:
    """Machine, versions and the day."""
    from datafree.runs import record

    found = record.environment()
    return {
        "cpu": found["processor"],
        "cores": found["cores"],
        "threads": found["threads"],
        "gpu": found["gpu"],
        "torch": found["packages"]["torch"],
        "python": found["python"],
        "date": time.strftime("%Y-%m-%d"),
    }


def commit(folder: Path) -> str:
    """The commit of the repository around `folder`; ``+`` behind it where code differs from it."""
    code = ("status", "--porcelain", "--", "src", "benchmarks", ":!benchmarks/results")
    try:
        head, changed = (
            subprocess.run(["git", "-C", folder, *words], capture_output=True, check=True).stdout
            for words in (("rev-parse", "--short=7", "HEAD"), code)
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.decode().strip() + ("+" if changed else "")
