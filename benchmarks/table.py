"""A table: which cells it has, how each of them is measured, and how they are shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Self, cast

import yaml
from pydantic import BeforeValidator, Field, model_validator

from datafree.config import Frozen, build, merge
from datafree.errors import ConfigError, UnknownNameError
from datafree.sweeps.plan import SEED, Axes, Chosen, Where


@dataclass(frozen=True)
class Cell:
    """One measurement of a table.

    Attributes:
        values: axis and name of the value, in the order of the axes.
        seed: of all random numbers.
    """

    values: tuple[tuple[str, str], ...]
    seed: int

    def as_dict(self) -> dict[str, str | int]:
        """What a record keeps of it."""
        return {**dict(self.values), SEED: self.seed}

    def __str__(self) -> str:
        """For people: ``dsg, mse, W4A4, seed 0``."""
        return ", ".join([*(value for _, value in self.values), f"seed {self.seed}"])

    def within(self, where: Where) -> bool:
        """Whether every axis has one of the values of `where`."""
        own = self.as_dict()
        return all(str(own[axis]) in values for axis, values in where.items())


def _column(given: Any) -> Any:
    return {"axes": [given]} if isinstance(given, str) else given


class Change(Frozen):
    """A change of the library that records from before it do not know."""

    date: date
    """Records of earlier days are marked."""
    where: Chosen = Field(default_factory=dict)
    """Values of axes it concerns; all cells where none are given."""
    what: str
    """For the footnote, after "measured before DATE, when": a clause."""


class Column(Frozen):
    """A column of a view, or one for every value of its `axes`."""

    axes: tuple[str, ...] = ()
    """Axes whose values (or combinations of them) make a column each."""
    where: Chosen = Field(default_factory=dict)
    """Values it is restricted to."""
    value: str | None = None
    """What is shown, a name under `measured` (``stages.export`` is a name within a name); None is
    the view's."""
    beside: str | None = None
    """What is shown in brackets; None is the view's."""
    decimals: int | None = None
    """Digits after the point; None is the view's."""
    factor: float = 1.0
    """On numbers, for other units."""
    name: str = ""
    """Its head; axes have the names of their values."""


class View(Frozen):
    """What one Markdown table shows."""

    rows: tuple[str, ...] = Field(min_length=1)
    """Axes whose values stand at the left, a column for each."""
    columns: tuple[Annotated[Column, BeforeValidator(_column)], ...] = Field(min_length=1)
    """In order; a text is an axis."""
    where: Chosen = Field(default_factory=dict)
    """Values of axes, in the order to show them in."""
    value: str = "top1"
    """What is shown, a name under `measured`."""
    beside: str | None = None
    """What is shown in brackets behind it."""
    decimals: int = 1
    """Digits after the point."""
    heads: tuple[str, ...] = ()
    """Heads of the columns of the rows."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Values of axes in other words."""


class Table(Frozen):
    """What one YAML file says."""

    name: str
    """Stem of the file, and of that of its records."""
    title: str
    """One line for people."""
    kind: str = "run"
    """How a cell is measured: a file of `benchmarks/kinds`."""
    base: dict[str, Any] = Field(default_factory=dict)
    """Fields of a `RunConfig`, and of the kind, that all cells share."""
    axes: Axes
    """By axis and name of the value the fields it changes, `kind` among them. A list of values
    changes the field that the axis is called after."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of every cell that says nothing else."""
    cells: tuple[Chosen, ...] = ({},)
    """Blocks of cells that are wanted: values of axes, and `seed`; left out are all of them."""
    changed: tuple[Change, ...] = ()
    """What came after records that are still shown."""
    views: dict[str, View] = Field(default_factory=dict)
    """Markdown tables, by the name that pages call."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        for block in (*self.cells, *(change.where for change in self.changed)):
            self.check(block)
        for view in self.views.values():
            self.check(view.where)
            axes = [*view.rows, *(axis for column in view.columns for axis in column.axes)]
            self.check(dict.fromkeys(axes, ()))
            for column in view.columns:
                self.check(column.where)
        return self

    @classmethod
    def load(cls, path: Path) -> Table:
        """Read the table of a YAML file.

        Raises:
            ConfigError: it is not YAML, or not a table; the message names the place.
        """
        try:
            values: object = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"cannot read table {path}: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise ConfigError(f"{path} is not a table: expected keys such as title, base, axes")
        given = {str(key): value for key, value in cast("dict[Any, Any]", values).items()}
        return build(cls, {**given, "name": path.stem}, f"table {path.stem}")

    def check(self, where: Where) -> None:
        """Refuse axes and values that the table does not have.

        Raises:
            UnknownNameError: the nearest names are offered.
        """
        for axis, values in where.items():
            if axis != SEED and axis not in self.axes:
                raise UnknownNameError(f"axis of {self.name}", axis, [*self.axes, SEED])
            for value in values:
                if axis == SEED and not value.isdecimal():
                    raise ConfigError(f"seed {value!r} is no whole number")
                if axis != SEED and value not in self.axes[axis]:
                    kind = f"value of {axis} of {self.name}"
                    raise UnknownNameError(kind, value, self.axes[axis])

    def wanted(self, seeds: tuple[int, ...] | None = None) -> tuple[Cell, ...]:
        """All cells in order, each once.

        Args:
            seeds: instead of the table's own, in every block.
        """
        found = (cell for block in self.cells for cell in self._block(block, seeds))
        return tuple(dict.fromkeys(found))

    def _block(self, block: Where, seeds: tuple[int, ...] | None) -> Iterator[Cell]:
        own = tuple(map(int, block.get(SEED, ()))) or self.seeds
        values = [block.get(axis, tuple(named)) for axis, named in self.axes.items()]
        for seed in seeds or own:
            for chosen in product(*values):
                yield Cell(tuple(zip(self.axes, chosen, strict=True)), seed)

    def fields(self, cell: Cell) -> dict[str, Any]:
        """All fields of a cell: the base, changed by the values of its axes one after the other."""
        changes = (self.axes[axis][value] for axis, value in cell.values)
        return reduce(merge, changes, {"kind": self.kind, **self.base}) | {SEED: cell.seed}


def load_tables(folder: Path) -> dict[str, Table]:
    """All tables of `folder` by name.

    Raises:
        ConfigError: one of them cannot be read.
    """
    return {path.stem: Table.load(path) for path in sorted(folder.glob("*.yaml"))}


def choose(tables: Mapping[str, Table], names: Iterable[str]) -> list[Table]:
    """The tables called `names`; all of them where none are named.

    Raises:
        UnknownNameError: no such table; the nearest names are offered.
    """
    wanted = list(names) or list(tables)
    for name in wanted:
        if name not in tables:
            raise UnknownNameError("table", name, tables)
    return [tables[name] for name in wanted]
