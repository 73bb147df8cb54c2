"""Which cells a sweep has: a file of axes, their product, and the run that every cell is."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, cast

import yaml
from pydantic import BeforeValidator, Field, model_validator

from datafree.bounds import first_line, text_of
from datafree.calibrators.base import RangeRule
from datafree.config import Frozen, RunConfig, build, merge
from datafree.config.reading import LARGEST, yaml_of
from datafree.errors import ConfigError, DatafreeError, UnknownNameError
from datafree.recipes import recipe_fields
from datafree.reconstruction.base import Reconstructor
from datafree.registry import load
from datafree.runs.choices import names_in
from datafree.runs.plan import make_method
from datafree.runs.trust import check_trusted
from datafree.synthesis.base import Synthesizer
from datafree.training.base import Trainer

SEED = "seed"
"""The axis that tables take means over."""
MOST_CELLS = 100_000
"""Cells of the largest sweep: a slip of the pen makes billions."""
_LONGEST = 80  # signs of a folder's name
_ODD = re.compile(r"[^A-Za-z0-9._]+")

T = TypeVar("T")
Where = dict[str, tuple[str, ...]]
"""Values by axis; axes that are not named may have any."""


def _text(value: object) -> str:
    """A plain value as YAML has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _texts(given: Any) -> Any:
    """``{bits: W4A4, seed: [0, 1]}`` with a tuple of texts for each."""
    if not isinstance(given, dict):
        return given
    found = cast("dict[Any, Any]", given)
    return {
        str(axis): tuple(map(_text, values if isinstance(values, (list, tuple)) else [values]))
        for axis, values in found.items()
    }


def _named(axis: str, values: Any) -> dict[str, Any]:
    """The values of an axis by name, and the fields each of them changes."""
    if not isinstance(values, (list, dict)) or not values:
        raise ValueError(f"{axis} has no values: list some, or name them and what each changes")
    if isinstance(values, dict):
        named = cast("dict[Any, Any]", values)
        return {_text(name): {} if changes is None else changes for name, changes in named.items()}
    found: dict[str, Any] = {}
    for value in cast("list[Any]", values):
        if isinstance(value, (list, dict)):
            raise ValueError(
                f"{axis} lists {value!r}, which is no plain value: name it,"
                f" {{a name: {{{axis}: {value!r}}}}}"
            )
        if _text(value) in found:
            raise ValueError(f"{axis} has {_text(value)} twice")
        found[_text(value)] = {axis: value}
    return found


def _axes(given: Any) -> Any:
    """Axes whose values are listed set the field of the same name."""
    if not isinstance(given, dict):
        return given
    axes = cast("dict[Any, Any]", given)
    return {str(axis): _named(str(axis), values) for axis, values in axes.items()}


Chosen = Annotated[Where, BeforeValidator(_texts)]
"""Values of axes, as files write them."""
Axes = Annotated[dict[str, dict[str, dict[str, Any]]], BeforeValidator(_axes)]
"""By axis and name of the value the fields it changes. A list of values changes the field that the
axis is called after."""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        values: axis and name of the value, in the order of the axes.
        name: of its folder; it does not depend on the other cells.
        config: the run.
    """

    values: tuple[tuple[str, str], ...]
    name: str
    config: RunConfig

    def __str__(self) -> str:
        """For people: ``digits_resnet8, zeroq, W4A4, seed 0``."""
        return in_words(self.values)


class Plan(Frozen):
    """What the file of a sweep says."""

    base: dict[str, Any] = Field(default_factory=dict)
    """Settings of a run that all cells share, `recipe` among them."""
    axes: Axes
    """What cells differ in: settings with the values to take, or names with several settings
    each."""
    cells: tuple[Chosen, ...] = ({},)
    """Blocks of cells that are wanted: values of axes; all of an axis that is left out."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        for block in self.cells:
            for axis, values in block.items():
                if axis not in self.axes:
                    raise ValueError(f"cells: {UnknownNameError('axis', axis, self.axes)}")
                for value in values:
                    if value not in self.axes[axis]:
                        known = self.axes[axis]
                        raise ValueError(
                            f"cells: {UnknownNameError(f'value of {axis}', value, known)}"
                        )
        if (count := sum(map(self._count, self.cells))) > MOST_CELLS:
            raise ValueError(f"axes have {count} cells, and {MOST_CELLS} are the most")
        return self

    def plain(self) -> dict[str, Any]:
        """As a file has it; `plan_of` reads it again."""
        cells = [{axis: list(values) for axis, values in block.items()} for block in self.cells]
        return {"base": self.base, "axes": self.axes, "cells": cells}

    def runs(self, where: str) -> tuple[Cell, ...]:
        """All cells in order, each once, with their runs checked.

        Args:
            where: the plan comes from, for messages.

        Raises:
            ConfigError: a cell is no run; the message names it and the setting.
        """
        values = dict.fromkeys(one for block in self.cells for one in self._block(block))
        cells = tuple(Cell(one, _folder(one), self._run(one, where)) for one in values)
        folders: dict[str, Cell] = {}
        for cell in cells:
            if (other := folders.setdefault(cell.name.lower(), cell)) is not cell:
                raise ConfigError(
                    f"{where}: cells {other} and {cell} have one name: name their values"
                )
        return cells

    def _count(self, block: Where) -> int:
        return math.prod(len(block.get(axis, named)) for axis, named in self.axes.items())

    def _block(self, block: Where) -> Iterator[tuple[tuple[str, str], ...]]:
        values = [block.get(axis, tuple(named)) for axis, named in self.axes.items()]
        for chosen in product(*values):
            yield tuple(zip(self.axes, chosen, strict=True))

    def _run(self, values: tuple[tuple[str, str], ...], where: str) -> RunConfig:
        """The base, changed by the values of the axes one after the other, over the recipe."""
        what = f"{where}, cell {in_words(values)}"
        changes = (self.axes[axis][value] for axis, value in values)
        fields = reduce(merge, changes, self.base)
        recipe = fields.pop("recipe", None) if "recipe" in fields else None
        try:
            chosen = recipe_fields(None if recipe is None else str(recipe))
        except UnknownNameError as error:
            raise ConfigError(f"{what}: recipe: {error}") from None
        config = build(RunConfig, merge(chosen, fields), what)
        if config.in_memory:
            raise ConfigError(f"{what}: model: a network in memory is nowhere to be loaded from")
        return config


def load_plan(path: Path) -> Plan:
    """Read the file of a sweep.

    Raises:
        ConfigError: it cannot be read, or is no sweep; the message names file and key.
    """
    try:
        values: object = yaml_of(text_of(path, LARGEST))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read sweep {path}: {first_line(error)}") from None
    return plan_of(values, f"sweep {path}")


def plan_of(values: object, where: str) -> Plan:
    """The plan that plain `values` are, which come from `where`.

    Raises:
        ConfigError: they are none.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: expected the keys axes, base and perhaps cells")
    found = cast("Mapping[Any, Any]", values)
    return build(Plan, {str(key): value for key, value in found.items()}, where)


def as_file(plan: Plan) -> str:
    """A plan as YAML."""
    return yaml.safe_dump(plan.plain(), sort_keys=False, allow_unicode=True)


def check_code(cells: tuple[Cell, ...], path: Path, *, trust_code: bool) -> None:
    """Refuse to run code that the sweep in the file `path` names.

    Raises:
        UntrustedCodeError: there is such code, and `trust_code` is not set.
    """
    for cell in cells:
        check_trusted(cell.config, path, trust_code=trust_code)


def check_cells(cells: tuple[Cell, ...], where: str) -> None:
    """Refuse cells whose methods or options there are none of; code that they name runs.

    Raises:
        ConfigError: the message names the cell.
    """
    known: set[str] = set()
    for cell in cells:
        methods = ("synthesis", "calibration", "rounding", "tuning")
        told = repr([getattr(cell.config, name) for name in methods])
        if told in known:
            continue
        known.add(told)
        try:
            _check_methods(cell.config)
        except DatafreeError as error:
            raise ConfigError(f"{where}, cell {cell}: {error}") from None


def _check_methods(config: RunConfig) -> None:
    """Refuse methods that there are none of, and options they do not have."""
    asked = (
        (config.synthesis, "synthesis", Synthesizer),
        (config.calibration, "calibrators", RangeRule),
        (config.rounding, "reconstruction", Reconstructor),
        (config.tuning, "training", Trainer),
    )
    for chosen, package, base in asked:
        if chosen is None:
            continue
        names = names_in(chosen.name)
        for name in names:
            load(f"datafree.{package}", name, base)
        if len(names) == 1:  # of several, options may be those of another one
            make_method(chosen, package, base)


def shard(cells: tuple[T, ...], part: tuple[int, int] | None) -> tuple[T, ...]:
    """Every n-th cell from the i-th on, for `part` (i, n); all where it is None."""
    return cells if part is None else cells[part[0] :: part[1]]


def in_words(values: tuple[tuple[str, str], ...]) -> str:
    """Values of axes for people; bare numbers with the name of their axis."""
    return ", ".join(f"{axis} {value}" if _bare(value) else value for axis, value in values)


def _bare(value: str) -> bool:
    return value in ("null", "true", "false") or value.replace(".", "", 1).isdigit()


def _folder(values: tuple[tuple[str, str], ...]) -> str:
    """A name for the folder of a cell: its values, and a hash where they cannot stand in a name."""
    exact = [value for _, value in values]
    plain = [_ODD.sub("_", value).strip("._") for value in exact]
    name, whole = "-".join(plain), "\n".join(exact)
    if plain == exact and len(name) <= _LONGEST:
        return name
    return f"{name[:_LONGEST]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
