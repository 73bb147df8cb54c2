"""Published results beside ours: `targets.csv`, whose numbers of ours come from records.

A row is one number of a paper. Its first columns and its state are written by people; a row that
was run names the table and the cell that its number comes from, ``AXIS=VALUE; AXIS=VALUE``, and a
row that was not says what is missing. The last columns are filled by ``render``.
"""

from __future__ import annotations

import csv
import io
import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import model_validator

from benchmarks.page import Source
from benchmarks.record import Record
from benchmarks.table import Where
from datafree.config import Frozen, build
from datafree.errors import ConfigError

FLOAT = "float"
_FLOAT_BITS = "32"
_RUN = ("python", "-m", "benchmarks", "run")
_FILLED = ("ours", "spread", "seeds", "command", "commit")


class Target(Frozen):
    """One number of a paper, and what stands beside it."""

    method: str
    """As the paper calls it, in lower case; options of it behind ``|``."""
    dataset: str
    """Of the paper."""
    arch: str
    """Network of the paper."""
    W: str
    """Bits of weights; 32 is float."""
    A: str
    """Bits of activations."""
    top1: str
    """As printed, in percent."""
    source: str
    """Paper and table, see `benchmarks.reproduction`."""
    state: Literal["reproduced", "repeated", "not run"]
    """*reproduced*: on the paper's network and data; *repeated*: on the nearest at hand."""
    table: str = ""
    """Table of the house that has our number."""
    cell: str = ""
    """Its cell, as ``bits=W4A4; images=dsg``."""
    missing: str = ""
    """What it would take to run it."""
    ours: str = ""
    """Mean top-1 over seeds; filled."""
    spread: str = ""
    """Standard deviation over seeds, where there are several; filled."""
    seeds: str = ""
    """Of the records; filled."""
    command: str = ""
    """That measures it again, or would where network and data are at hand; filled."""
    commit: str = ""
    """That it was measured at; filled."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.run and not (self.table and self.cell and not self.missing):
            raise ValueError(f"a row that is {self.state} names its table and cell alone")
        if not self.run and (self.table or self.cell or not self.missing):
            raise ValueError("a row that was not run says what is missing, and names no cell")
        return self

    @property
    def run(self) -> bool:
        """Whether it was run."""
        return self.state != "not run"

    @property
    def bits(self) -> str:
        """``W4A4``, or ``float``."""
        return FLOAT if self.W == _FLOAT_BITS == self.A else f"W{self.W}A{self.A}"

    @property
    def published(self) -> float:
        """The number of the paper; without the mark of a footnote."""
        return float(self.top1.rstrip("*"))

    @property
    def where(self) -> Where:
        """Values of axes by the cell's words.

        Raises:
            ConfigError: one of them is no pair.
        """
        found: Where = {}
        for text in self.cell.split(";"):
            axis, equals, value = text.strip().partition("=")
            if not equals:
                raise ConfigError(f"cell {text.strip()!r} is no pair: write AXIS=VALUE; AXIS=VALUE")
            found[axis] = (value,)
        return found


@dataclass(frozen=True)
class Ours:
    """What records say of a row.

    Attributes:
        source: the table and its records.
        records: of the row's cell, by seed.
        teacher: top-1 of the float network.
    """

    source: Source
    records: Mapping[int, Record]
    teacher: float

    @property
    def values(self) -> list[float]:
        """Top-1 by seed."""
        return [record.value("top1") for record in self.records.values()]

    @property
    def mean(self) -> float:
        """Of all seeds."""
        return statistics.mean(self.values)

    @property
    def spread(self) -> float | None:
        """Standard deviation; None where there is one seed."""
        return statistics.stdev(self.values) if len(self.records) > 1 else None

    @property
    def commits(self) -> list[str]:
        """Each once."""
        return list(dict.fromkeys(record.commit for record in self.records.values()))


def read(path: Path) -> list[Target]:
    """The rows of a file; none where it is not there.

    Raises:
        ConfigError: a row has no state, or what its state asks for is not there.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    found: list[Target] = []
    for number, row in enumerate(csv.DictReader(io.StringIO(text)), start=2):
        known = {str(name): value or "" for name, value in row.items()}
        found.append(build(Target, known, f"targets.csv, line {number}"))
    return found


def written(
    rows: Sequence[Target],
    sources: Callable[[str], Source],
    elsewhere: Callable[[Target], str] = lambda _: "",
) -> str:
    """The file with its last columns filled from records.

    Args:
        rows: of the file.
        sources: the table called so, with its records.
        elsewhere: the command of a row that was not run.

    Raises:
        ConfigError: as `found` does.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, list(Target.model_fields), lineterminator="\n")
    writer.writeheader()
    for number, row in enumerate(rows, start=2):
        ours = found(row, sources, f"targets.csv, line {number}") if row.run else None
        filled = {"command": elsewhere(row)} if ours is None else _filled(row, ours)
        writer.writerow(row.model_dump() | dict.fromkeys(_FILLED, "") | filled)
    return out.getvalue()


def _filled(row: Target, ours: Ours) -> dict[str, str]:
    return {
        "ours": f"{ours.mean:.2f}",
        "spread": "" if ours.spread is None else f"{ours.spread:.2f}",
        "seeds": " ".join(map(str, ours.records)),
        "command": command(row.table, row.where),
        "commit": " ".join(ours.commits),
    }


def found(row: Target, sources: Callable[[str], Source], what: str) -> Ours:
    """The records of a row's cell.

    Args:
        row: that was run.
        sources: the table called so, with its records.
        what: the row in words, for the message.

    Raises:
        ConfigError: there is no such table or cell, or nothing was measured of it.
    """
    try:
        source = sources(row.table)
        source.table.check(row.where)
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from None
    if open_axes := [axis for axis in source.table.axes if axis not in row.where]:
        raise ConfigError(f"{what}: the cell leaves {open_axes[0]} open: give it a value")
    if not any(cell.within(row.where) for cell in source.table.wanted()):
        raise ConfigError(f"{what}: {row.table} has no cell {row.cell}: add it to its cells")
    records = {
        cell.seed: record
        for cell, record in sorted(source.records.items(), key=lambda pair: pair[0].seed)
        if cell.within(row.where) and record.value("top1") is not None
    }
    if not records:
        raise ConfigError(f"{what}: not measured: {command(row.table, row.where)}")
    return Ours(source, records, _teacher(next(iter(records.values())), source))


def _teacher(record: Record, source: Source) -> float:
    from benchmarks.networks import NETWORKS

    fields: Mapping[str, Any] = source.table.fields(record.of(source.table))
    return NETWORKS[fields["model"]].top1


def command(table: str, where: Where) -> str:
    """Measures cells of a table again."""
    pairs = [f"{axis}={value}" for axis, values in where.items() for value in values]
    only = (word for pair in pairs for word in ("--only", pair))
    return shlex.join([*_RUN, table, *only, "--again"])


def commands(rows: Sequence[Target]) -> list[str]:
    """Few commands for the cells of many rows: those that differ in one axis go together."""
    found: dict[str, list[Where]] = {}
    for row in rows:
        cells = found.setdefault(row.table, [])
        if row.where not in cells:
            cells.append(row.where)
    return [command(table, where) for table, cells in found.items() for where in _joined(cells)]


def _joined(cells: Sequence[Where]) -> list[Where]:
    """Blocks of cells that have the very same cells."""
    blocks = list(cells)
    for axis in {axis: None for cell in cells for axis in cell}:
        together: dict[tuple[Any, ...], Where] = {}
        for block in blocks:
            rest = tuple((name, values) for name, values in block.items() if name != axis)
            first = together.setdefault(rest, block)
            values = (*first[axis], *(v for v in block[axis] if v not in first[axis]))
            together[rest] = {**first, axis: values}
        blocks = list(together.values())
    return blocks
