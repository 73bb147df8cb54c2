"""What all configurations share: immutable, keyword-only, explained on their fields."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from datafree.errors import ConfigError

_TOLD, _LONGEST = 3, 400
LARGEST = 1e30
"""Optimizers divide a rate by numbers far below 1, and single precision ends at 3.4e38."""
T = TypeVar("T", bound="Frozen")


if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass as _Told
else:

    class _Told(type(BaseModel)):
        """Of classes whose calls refuse in a line; what pydantic itself validates is left to it."""

        def __call__(cls, *args: Any, **fields: Any) -> Any:
            if args:
                raise ConfigError(f"{cls.__name__}: {by_name(args[0])}")
            try:
                return super().__call__(**fields)
            except ValidationError as error:
                raise ConfigError(f"{cls.__name__}: {in_one_line(error, cls)}") from None


class Frozen(BaseModel, metaclass=_Told):
    """A configuration: immutable, keyword-only, unknown keys refused.

    A string under a field says what the field means; see `datafree.config.fields`. A field that is
    unknown, missing or out of range is a `ConfigError` of one line where an instance is made.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True
    )


class Hyperparameters(Frozen):
    """Options of a method: numbers that single precision computes with."""

    @model_validator(mode="after")
    def _within_reach(self) -> Self:
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value == field.default:  # a method may know what it does with infinity
                continue
            if isinstance(value, float) and not abs(value) <= LARGEST:
                raise ValueError(f"{name} is {value}: give a number of at most {LARGEST:g}")
        return self


class Method(Frozen):
    """A method by name with the hyper-parameters that differ from its defaults."""

    name: str
    """As `datafree methods` lists it, or where a class is: `file.py:Class`,
    `package.module:Class`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Hyper-parameters by name."""


def build(cls: type[T], values: Mapping[str, Any], what: str) -> T:
    """`cls(**values)` with pydantic's complaints turned into one line.

    Args:
        cls: configuration class.
        values: its fields.
        what: what the values describe, for the message (e.g. ``"option of dsg"``).

    Raises:
        ConfigError: a field is unknown, missing or out of range; the message names it.
    """
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(f"{what}: {in_one_line(error, cls)}") from None


def in_one_line(error: ValidationError, cls: type[BaseModel]) -> str:
    """What pydantic complains of, with the names that are known where one is not.

    Args:
        error: of building `cls`.
        cls: configuration class.
    """
    parts: list[str] = []
    # The default of some follows from another field, whose problem is told.
    problems = [one for one in error.errors() if one["type"] != "default_factory_not_called"]
    problems = _once(problems)
    for problem in problems[:_TOLD]:
        where = ".".join(_shown(str(part)) for part in problem["loc"])
        if problem["type"] == "path_type":
            given = type(problem["input"]).__name__
            article = "an" if given[0] in "aeiouAEIOU" else "a"
            parts.append(f"{problem['loc'][0]}: give a path, not {article} {given}")
        elif problem["type"] == "extra_forbidden":
            names = _class_at(cls, problem["loc"][:-1]).model_fields
            near = _nearest(str(problem["loc"][-1]), names)
            seen = any(near in part for part in parts)
            parts.append(f"{where} is not known" + (f" {near}" if not seen else ""))
        else:
            said = _shown(problem["msg"].removeprefix("Value error, "), _LONGEST)
            parts.append(f"{where}: {said}" if where else said)
    if len(problems) > _TOLD:
        parts.append(f"and {len(problems) - _TOLD} more")
    return "; ".join(parts)


def by_name(value: Any) -> str:
    """What is said of `value`, which was given by position where fields have names."""
    return f"{_shown(repr(value))} has no name: write which field it is, as in name=value"


def _once(problems: list[ErrorDetails]) -> list[ErrorDetails]:
    """Without what else a value is not that is no path: its other types tell nothing more."""
    paths = [problem["loc"][0] for problem in problems if problem["type"] == "path_type"]
    return [
        one for one in problems
        if one["type"] == "path_type" or not one["loc"] or one["loc"][0] not in paths
    ]  # fmt: skip


def _shown(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    """The names most like `name`, or all of them, in brackets."""
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.6)
    return f"(did you mean {' or '.join(close)}?)" if close else f"(known: {', '.join(known)})"


def _class_at(cls: type[BaseModel], path: tuple[int | str, ...]) -> type[BaseModel]:
    """The configuration class that the fields along `path` lead to."""
    for name in path:
        inner = cls.model_fields[str(name)].annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            cls = inner
    return cls
