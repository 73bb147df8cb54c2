"""What is said of a field, for people: the source of `--help`, signatures and reference pages.

A field is declared once: name, type, default and range in its annotation, its meaning in the string
under it. All that people read about it comes from here.
"""

from __future__ import annotations

import functools
import operator
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from datafree.config.base import Frozen

PANELS = ("Model", "Numbers", "Images", "Ranges and corrections", "Learning", "Machines", "Output")
"""Parts of the help, in order; a class of options says in `panel` where its fields belong."""
_BOUNDS = {Ge: "at least {}", Gt: "more than {}", Le: "at most {}", Lt: "less than {}"}


@dataclass(frozen=True)
class Shown:
    """How a field is shown; put into its annotation: ``Annotated[int | None, Shown("all")]``.

    Attributes:
        default: what people see in place of the default, where that says nothing: None above all.
        value: placeholder of the value, such as ``C,H,W``.
        short: one-letter option of the command line, such as ``-o``.
        hidden: no option, neither of the command line nor of a Python function.
        flag: on the command line it can only be switched on.
        repeated: on the command line every value has an option of its own.
    """

    default: str = ""
    value: str = ""
    short: str = ""
    hidden: bool = False
    flag: bool = False
    repeated: bool = False


@dataclass(frozen=True)
class Described:
    """One field, for people.

    Attributes:
        name: as in Python and in files.
        meaning: what it does; one or more sentences.
        default: as text; empty where it has to be given.
        allowed: its values or range as text; empty where anything of its type will do.
        choices: its values, where there are only so many.
        kind: type without None: `int`, `float`, `bool`, `str`, `Path`, `dict`, `tuple` …
        shown: what its annotation says of how to show it.
    """

    name: str
    meaning: str
    default: str
    allowed: str
    choices: tuple[str, ...]
    kind: str
    shown: Shown


def described(cls: type[Frozen]) -> dict[str, Described]:
    """Every field of `cls` by name, in order; what a class does not say its bases say."""
    return {name: describe(cls, name) for name in cls.model_fields}


def panel_of(cls: type[Frozen], name: str) -> str:
    """The panel of the class that declares field `name`, the last one in which it is new."""
    for base in reversed(cls.__mro__):
        if name in getattr(base, "__annotations__", {}):
            return str(getattr(base, "panel", PANELS[-1]))
    return PANELS[-1]


def in_panels(cls: type[Frozen]) -> list[str]:
    """The fields of `cls` as people read them: panel by panel."""
    return sorted(cls.model_fields, key=lambda name: PANELS.index(panel_of(cls, name)))


def plain_type(annotation: Any) -> Any:
    """A type without what `Annotated` adds to it and to its parts."""
    if hasattr(annotation, "__metadata__"):
        return plain_type(annotation.__origin__)
    parts = get_args(annotation)
    if not parts or get_origin(annotation) is Literal:
        return annotation
    plain = tuple(part if part is Ellipsis else plain_type(part) for part in parts)
    if isinstance(annotation, types.UnionType) or get_origin(annotation) is Union:
        return functools.reduce(operator.or_, plain)
    return get_origin(annotation)[plain]  # pyright: ignore[reportOptionalSubscript]


def describe(cls: type[Frozen], name: str) -> Described:
    """Field `name` of `cls`."""
    field = cls.model_fields[name]
    choices = tuple(str(value) for value in _choices(field.annotation))
    shown = next((m for m in _metadata(field) if isinstance(m, Shown)), Shown())
    return Described(
        name=name,
        meaning=meaning(cls, name),
        default=_default(field, shown),
        allowed=_either(choices) if choices else _range(field),
        choices=choices,
        kind=_kind(field.annotation),
        shown=shown,
    )


def meaning(cls: type[Frozen], name: str) -> str:
    """The string under field `name`, in `cls` or the nearest base that has one; one line."""
    for base in cls.__mro__:
        if issubclass(base, Frozen) and name in base.model_fields:
            told = base.model_fields[name].description
            if told:
                return " ".join(told.split())
    return ""


def option_name(name: str) -> str:
    """The option of the command line that sets field `name`: ``--method-option``, repeated."""
    return "--" + name.removesuffix("s" if name.endswith("_options") else "").replace("_", "-")


def written(value: Any) -> str:
    """A value as people write it on the command line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple | list):
        return ",".join(map(written, value))
    if isinstance(value, Mapping):
        return " ".join(f"{key}={written(item)}" for key, item in value.items()) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _default(field: FieldInfo, shown: Shown) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if shown.default:
        return shown.default
    if value is PydanticUndefined:
        return ""
    return "none" if value is None else written(value)


def _metadata(field: FieldInfo) -> list[Any]:
    """What annotations say beside the type, of the field and of the types in a union."""
    found = list(field.metadata)
    for part in _parts(field.annotation):
        found += getattr(part, "__metadata__", ())
    return found + [m for item in found if isinstance(item, FieldInfo) for m in item.metadata]


def _parts(annotation: Any) -> tuple[Any, ...]:
    union = get_origin(annotation) in (Union, types.UnionType)
    return get_args(annotation) if union else (annotation,)


def _choices(annotation: Any) -> tuple[Any, ...]:
    parts = [part for part in _parts(annotation) if part is not type(None)]
    if parts and all(get_origin(part) is Literal for part in parts):
        return tuple(value for part in parts for value in get_args(part))
    return ()


def _kind(annotation: Any) -> str:
    parts = [part for part in _parts(annotation) if part is not type(None)]
    names: list[str] = []
    for part in parts:
        plain = getattr(part, "__origin__", part) if hasattr(part, "__metadata__") else part
        origin = get_origin(plain) or plain
        names.append("str" if origin is Literal else getattr(origin, "__name__", str(origin)))
    return "dict" if names == ["Mapping"] else " | ".join(dict.fromkeys(names))


def _either(choices: tuple[str, ...]) -> str:
    return " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))


def _range(field: FieldInfo) -> str:
    """The bounds of a number, as words."""
    bounds: dict[type, Any] = {}
    for item in _metadata(field):
        for kind in _BOUNDS:
            if isinstance(item, kind):
                bounds[kind] = getattr(item, kind.__name__.lower())
    if set(bounds) == {Ge, Le}:
        return f"{written(bounds[Ge])} to {written(bounds[Le])}"
    return ", ".join(_BOUNDS[kind].format(written(bound)) for kind, bound in bounds.items())
