"""The folder of a sweep: its plan, a run for every cell, and what was begun and ended when."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from datafree.config import RunConfig, load_config
from datafree.errors import ConfigError, OutputExistsError
from datafree.files import make_folder, write_text
from datafree.runs.folder import CONFIG, METRICS
from datafree.runs.stored import Stored, check_hash, read_run
from datafree.sweeps.plan import Cell, Plan, as_file, load_plan

PLAN = "sweep.yaml"
_CELLS, _LOG = "cells", "log"
_DAMAGED = "remove its folder, and the same command computes the cell again"
_UNEQUAL = frozenset(("seconds", "search"))  # results that no two runs share


@dataclass(frozen=True)
class Folder:
    """Where everything of a sweep lies.

    Attributes:
        path: of the folder.
    """

    path: Path

    @property
    def cells(self) -> Path:
        """The folder of all runs."""
        return self.path / _CELLS

    @property
    def logs(self) -> Path:
        """The folder of all logs."""
        return self.path / _LOG

    def cell(self, name: str) -> Path:
        """The run of a cell."""
        return self.cells / name

    def log(self, name: str) -> Log:
        """What happened to a cell."""
        return Log(self.logs / f"{name}.jsonl")

    def lock(self, name: str) -> Path:
        """Held by whoever computes a cell."""
        return self.logs / f".{name}.lock"

    def plan(self) -> Plan:
        """The plan of the sweep in it.

        Raises:
            ConfigError: there is none.
        """
        if not (self.path / PLAN).is_file():
            raise ConfigError(f"{self.path} is no sweep: give a folder that datafree sweep wrote")
        return load_plan(self.path / PLAN)

    def claim(self, plan: Plan) -> None:
        """Make this the folder of `plan`; cells that another plan left in it stay.

        Raises:
            OutputExistsError: it holds something else.
            OutputError: it cannot be written to.
        """
        inside = self.path.is_dir() and any(self.path.iterdir())
        if (inside and not (self.path / PLAN).is_file()) or self.path.is_file():
            raise OutputExistsError(f"{self.path} exists and is no sweep: choose another --output")
        for place in (self.path, self.cells, self.logs):
            make_folder(place, parents=True)
        text = as_file(plan)
        known = self.path / PLAN
        if not known.is_file() or known.read_text(encoding="utf-8") != text:
            write_text(known, text)

    def check_same(self, cell: Cell) -> None:
        """Refuse a cell whose folder holds a run of other settings.

        Raises:
            ConfigError: it does; the message names what differs.
        """
        place = self.cell(cell.name) / CONFIG
        if not place.is_file():
            return
        known = load_config(place)
        if known != cell.config:
            raise ConfigError(
                f"{place.parent} holds cell {cell} with other settings, {_difference(known, cell)}:"
                " choose another --output, or remove that folder"
            )


@dataclass(frozen=True)
class Log:
    """What happened to one cell: a JSON line for every beginning and every end.

    Attributes:
        path: of the file; only whoever holds the lock of the cell writes to it.
    """

    path: Path

    def add(self, event: str, **told: Any) -> None:
        """Add a line; one that a crash cut off is ended first."""
        line = {
            "event": event, "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "host": socket.gethostname(), "process": os.getpid(), **told,
        }  # fmt: skip
        torn = self.path.is_file() and self.path.read_bytes()[-1:] not in (b"", b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" * torn + json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def events(self) -> Iterator[Mapping[str, Any]]:
        """All lines in order; those that a crash cut off are left out."""
        if not self.path.is_file():
            return
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                found: object = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict):
                yield cast("Mapping[str, Any]", found)

    def begun(self, call: str) -> int:
        """How often the cell was begun in the call of this id."""
        return sum(
            one.get("event") == "started" and one.get("call") == call for one in self.events()
        )

    def error(self) -> str:
        """Why the cell failed, where that is the last that is known; else empty."""
        last = next(iter(reversed([*self.events()])), {})
        return str(last.get("error", "")) if last.get("event") == "failed" else ""


def finished(folder: Path, config: RunConfig) -> Stored | None:
    """The finished run in `folder`, all its files verified; None where there is none.

    Raises:
        ConfigError: a file of it is not what the run wrote, or it is of other settings.
    """
    if not (folder / METRICS).is_file():
        return None
    stored = read_run(folder)
    if stored.config != config:
        raise ConfigError(f"{folder} holds a run of other settings: {_DAMAGED}")
    for name in stored.record.get("hashes", {}):
        check_hash(folder, name, stored.record, _DAMAGED)
    return stored


def digest(record: Mapping[str, Any]) -> str:
    """SHA-256 of all that two runs of the same settings share: results and hashes of files."""
    shared = {"results": _timeless(record["results"]), "hashes": record.get("hashes", {})}
    return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()


def _timeless(value: Any) -> Any:
    """`value` without the times in it."""
    if isinstance(value, Mapping):
        items = cast("Mapping[str, Any]", value).items()
        return {key: _timeless(inner) for key, inner in items if key not in _UNEQUAL}
    if isinstance(value, list):
        return [_timeless(inner) for inner in cast("list[Any]", value)]
    return value


def _difference(known: RunConfig, cell: Cell) -> str:
    """The settings in which a run that is there differs from what a cell asks for."""
    told = [
        f"{name} is {getattr(known, name)} there and {value} here"
        for name in RunConfig.model_fields
        if getattr(known, name) != (value := getattr(cell.config, name))
    ]
    return "; ".join(told[:2])
