"""Pages: Markdown in which every table is made from records, between two comments."""

from __future__ import annotations

import re
import statistics
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from benchmarks.record import Record
from benchmarks.table import Cell, Change, Column, Table, View, Where
from datafree.config import RunConfig
from datafree.config.protocols import PROTOCOLS
from datafree.errors import ConfigError, UnknownNameError

_BLOCK = re.compile(r"(<!-- table: (\S+) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_MARKS = "†‡§¶"
_WIDTH = 99
_HARD = "\0"  # a space that no line ends at
_NOTHING = "–"  # noqa: RUF001 - a dash
_PLACES = {
    "every_input": "every layer input quantized",
    "after_activation": "quantized after activations",
}


@dataclass(frozen=True)
class Source:
    """A table and the last record of each of its cells."""

    table: Table
    records: Mapping[Cell, Record]


@dataclass
class Shown:
    """What a view has shown so far: its records, and the changes that overtook some of them."""

    table: Table
    cells: dict[Cell, Record] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)

    def marks(self, records: Iterable[Record]) -> str:
        """Note `records` as shown; the marks of the changes they are older than."""
        found = ""
        for record in records:
            self.cells[record.of(self.table)] = record
            for change in record.overtaken(self.table):
                if change not in self.changes:
                    self.changes.append(change)
                mark = _MARKS[self.changes.index(change)]
                found += mark if mark not in found else ""
        return found

    def notes(self) -> list[str]:
        """A footnote for every change."""
        return [
            f"{mark} Measured before {change.date}, when {change.what}."
            for mark, change in zip(_MARKS, self.changes, strict=False)
        ]


def render(text: str, sources: Callable[[str], Source], only: Sequence[str] = ()) -> str:
    """A page with the tables between its comments made anew.

    Args:
        text: of the page; ``<!-- table: NAME VIEW -->`` and ``<!-- end -->`` stand around each.
        sources: the table called so, with its records.
        only: tables to make anew; all where none are named.

    Raises:
        ConfigError: no such table or view, or a view that would mix what does not belong together.
    """

    def made(found: re.Match[str]) -> str:
        head, name, view, end = found.groups()
        if only and name not in only:
            return found.group()
        return f"{head}\n{markdown(sources(name), view)}\n{end}"

    return _BLOCK.sub(made, text)


def tables_in(text: str) -> list[tuple[str, str]]:
    """Tables and views that a page shows."""
    return [(found[2], found[3]) for found in _BLOCK.finditer(text)]


def markdown(source: Source, name: str) -> str:
    """One view: a Markdown table, how it was measured, footnotes of records that are overtaken.

    Raises:
        ConfigError: no such view; a view that leaves an axis open, or mixes networks, layer
            policies or placements.
    """
    table = source.table
    if name not in table.views:
        raise UnknownNameError(f"view of {table.name}", name, table.views)
    view, shown = table.views[name], Shown(table)
    columns = list(_columns(table, view))
    lines: list[list[str]] = []
    for row in _combinations(table, view.where, view.rows):
        texts = [_text(source, view, column, row, shown) for column in columns]
        if any(text != _NOTHING for text in texts):
            labels = [view.labels.get(value, value) for (value,) in row.values()]
            lines.append([*labels, *texts])
    if not lines and any(cell.within(view.where) for cell in source.records):
        return "None.\n"
    heads = [*view.heads, *[""] * (len(view.rows) - len(view.heads))]
    heads += [column.name for column in columns]
    rows = [heads, ["---"] * len(heads), *lines]
    below = [filled(text) for text in (caption(table, shown.cells), *shown.notes())]
    grid = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(grid) + "\n\n" + "\n\n".join(below) + "\n"


def filled(text: str) -> str:
    """Lines of a width that pages have; code is not broken."""
    return textwrap.fill(text, _WIDTH, break_on_hyphens=False).replace(_HARD, " ")


def _columns(table: Table, view: View) -> Iterable[Column]:
    """The columns, one for each value of axes that make several."""
    for column in view.columns:
        if not column.axes:
            yield column
        for chosen in _combinations(table, view.where | column.where, column.axes):
            if column.axes:
                values = [value for (value,) in chosen.values()]
                name = column.name or ", ".join(view.labels.get(v, v) for v in values)
                where = column.where | chosen
                yield column.model_copy(update={"where": where, "name": name})


def _combinations(table: Table, where: Where, axes: Iterable[str]) -> Iterable[Where]:
    """One value for each of `axes`, in the order of `where` or else of the table."""
    names = tuple(axes)
    for chosen in product(*(where.get(axis, tuple(table.axes[axis])) for axis in names)):
        yield {axis: (value,) for axis, value in zip(names, chosen, strict=True)}


def _text(source: Source, view: View, column: Column, row: Where, shown: Shown) -> str:
    """One place of the table: mean ± deviation over seeds, marked where that is overtaken."""
    where = view.where | column.where | row
    value = column.value or view.value
    beside = column.beside or (view.beside if column.value is None else None)
    decimals = view.decimals if column.decimals is None else column.decimals
    inside = [record for cell, record in source.records.items() if cell.within(where)]
    found = [record for record in inside if record.value(value) is not None]
    if not found:
        return _NOTHING
    if len({record.of(source.table).values for record in found}) > 1:
        raise ConfigError(
            f"a view of {source.table.name} leaves an axis open at {dict(where)}: give it a value"
        )
    text = number([record.value(value) for record in found], decimals, column.factor)
    if beside is not None and all(record.value(beside) is not None for record in found):
        text += f" ({number([record.value(beside) for record in found], decimals)})"
    return text + shown.marks(found)


def number(values: Sequence[Any], decimals: int, factor: float = 1.0) -> str:
    """``mean ± deviation`` of numbers; what is none stands as it is."""
    if not all(isinstance(value, (int, float)) for value in values):
        return ", ".join(dict.fromkeys(map(str, values))) or _NOTHING
    text = f"{factor * statistics.mean(values):.{decimals}f}"
    spread = factor * statistics.stdev(values) if len(values) > 1 else None
    return text if spread is None else f"{text} ± {spread:.{decimals}f}"


def caption(table: Table, cells: Mapping[Cell, Record]) -> str:
    """Network, policy and placement, seeds, machine, command."""
    if not cells:
        return f"Nothing is measured yet: {_command(table)}."
    fields = [table.fields(cell) for cell in cells]
    said = f"{_network(table, fields, cells)}; {_quantized(table, fields)}{_seeds(cells)}."
    return f"{said} {origin(table, cells.values())}"


def _one(table: Table, fields: Sequence[Mapping[str, Any]], name: str) -> Any:
    """The value of a field that all cells of a view must share."""
    default = RunConfig.model_fields[name].default
    found = {str(given.get(name, default)) for given in fields}
    if len(found) > 1:
        raise ConfigError(
            f"a view of {table.name} mixes {name} {' and '.join(sorted(found))}: numbers of these"
            " do not compare, make it two views"
        )
    return found.pop()


def _network(
    table: Table, fields: Sequence[Mapping[str, Any]], cells: Mapping[Cell, Record]
) -> str:
    from benchmarks.networks import NETWORKS

    records = [r for r in cells.values() if any(name.startswith("top1") for name in r.measured)]
    if "model" in table.axes and any(given.get("limit") for given in fields):
        most = max(int(given.get("limit") or 0) for given in fields)
        return f"The first {most:,} test images of each network, at most"
    if "model" in table.axes:
        return "All test images" + " where there are some" * (len(records) < len(cells))
    models = {str(given.get("model")) for given in fields}
    if "network" in table.axes and (len(models) > 1 or not models & NETWORKS.keys()):
        return f"{len(models)} networks" if len(models) > 1 else "One network"
    known = NETWORKS[_one(table, fields, "model")]
    found = {record.measured.get("test_images") or known.tests for record in records}
    if not found:
        return f"{known.title} (float {known.top1:.2f})"
    tested = " or ".join(f"{count:,}" for count in sorted(found))
    whole = "" if found == {known.tests} else f" on all {known.tests:,}"
    return f"{known.title} (float {known.top1:.2f}{whole}), {tested} test images"


def _quantized(table: Table, fields: Sequence[Mapping[str, Any]]) -> str:
    if not any("bits" in given for given in fields):
        return ""
    fields = [{**PROTOCOLS.get(str(given.get("protocol")), {}), **given} for given in fields]
    policy = _one(table, fields, "policy")
    where = _where(table, fields)
    grids = {str(given.get("weight_granularity", "channel")) for given in fields}
    grid = f", one weight grid per {grids.pop()}" if len(grids) == 1 else ""
    return f"policy `{policy}`, {where}{grid}; "


def _where(table: Table, fields: Sequence[Mapping[str, Any]]) -> str:
    """Where quantizers stand; a table that compares targets says it in its rows."""
    if "target" in table.axes:
        return "quantized where the target wants it"
    paper = [{"placement": "every_input", **given} for given in fields]
    return _PLACES[_one(table, paper, "placement")]


def _seeds(cells: Mapping[Cell, Record]) -> str:
    seeds: dict[Any, set[int]] = {}
    for cell in cells:
        seeds.setdefault(cell.values, set()).add(cell.seed)
    all_seeds = sorted({cell.seed for cell in cells})
    names = f"seed{'s' * (len(all_seeds) > 1)} {', '.join(map(str, all_seeds))}"
    if len(all_seeds) == 1:
        return names
    several = "" if all(len(s) > 1 for s in seeds.values()) else " where there is more than one"
    return f"{names}, mean ± standard deviation{several}"


def origin(table: Table, records: Iterable[Record]) -> str:
    """Machine, days and command of records: a sentence."""
    return f"{_machine(records)}; {_command(table)}."


def _command(table: Table) -> str:
    return f"`python -m benchmarks run {table.name}`".replace(" ", _HARD)


def _machine(records: Iterable[Record]) -> str:
    found = [record.environment for record in records]
    days = sorted({str(environment["date"]) for environment in found})
    machines = dict.fromkeys(map(_described, found))
    return f"{'; '.join(machines)}, {' to '.join(dict.fromkeys((days[0], days[-1])))}"


def _described(environment: Mapping[str, Any]) -> str:
    if "cpu" not in environment:
        return "A run that kept no record of its machine"
    cores = f", {environment['cores']} cores" if "cores" in environment else ""
    version = environment["torch"] or "unknown"
    return f"{environment.get('gpu') or environment['cpu']}{cores}, torch {version}"
