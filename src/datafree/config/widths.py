"""Bits of single layers as people give them, by name or by pattern."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

_BOTH = re.compile(r"W(\d+)A(\d+)")
_WILD = frozenset("*?[")
FLOAT = 32
"""Bits that are no bits: numbers left in float."""


def layer_width(value: Any) -> int | str:
    """Bits of a layer: of its weights as a number, of its input too as ``W4A8``.

    Raises:
        ValueError: neither, or not 2 to 8 bits.
    """
    text = str(value).strip().upper()
    found = _BOTH.fullmatch(text)
    if isinstance(value, bool) or (found is None and not text.isdecimal()):
        way = "keep_float leaves a layer in float" if text in ("FLOAT", "FP32", "NONE") else (
            "write bits of weights as 8, or of weights and input as W4A8"
        )  # fmt: skip
        raise ValueError(f"{value!r} is not understood: {way}")
    numbers = [int(text)] if found is None else [int(found[1]), int(found[2])]
    for number, what in zip(numbers, ("weights", "its input"), strict=False):
        if number == FLOAT:
            raise ValueError(f"{value}: keep_float leaves a layer in float, not {FLOAT} bits")
        if not 2 <= number <= 8:
            have = "have" if what == "weights" else "has"
            raise ValueError(f"{value}: {what} {have} 2 to 8 bits")
    return numbers[0] if found is None else f"W{numbers[0]}A{numbers[1]}"


def weights_of(width: int | str) -> int:
    """Bits of weights in what `layer_width` returns."""
    return width if isinstance(width, int) else int(width[1:].partition("A")[0])


def input_of(width: int | str) -> int | None:
    """Bits of the input in what `layer_width` returns; None where it says nothing of it."""
    return None if isinstance(width, int) else int(width.partition("A")[2])


def name_patterns(value: Any) -> Any:
    """One name or several as a tuple of texts; everything else as it is.

    Raises:
        ValueError: an empty name.
    """
    if value is None:
        return ()
    found = (value,) if isinstance(value, str) else value
    if isinstance(found, set | frozenset):
        found = sorted(str(name) for name in found)  # pyright: ignore[reportUnknownVariableType]
    if isinstance(found, list | tuple):
        if not all(isinstance(name, str) for name in found):  # pyright: ignore[reportUnknownVariableType]
            raise ValueError("names of layers are texts, such as conv1 or layer3.*")
        found = tuple(dict.fromkeys(found))  # pyright: ignore[reportUnknownArgumentType]
        if not all(found):
            raise ValueError("an empty name is no layer: give names, or patterns such as layer3.*")
    return found


def is_pattern(name: str) -> bool:
    """Whether `name` stands for several names: ``*`` any text, ``?`` one sign, ``[ab]`` a or b."""
    return not _WILD.isdisjoint(name)


def matches(name: str, pattern: str) -> bool:
    """Whether `pattern` is `name`, or stands for it."""
    return name == pattern or fnmatchcase(name, pattern)


def width_for(name: str, widths: Mapping[str, int | str]) -> tuple[str, int | str] | None:
    """The pattern in `widths` that decides on layer `name`, and what it says.

    A name outweighs patterns, and of patterns the last one holds.
    """
    if name in widths:
        return name, widths[name]
    found = [(pattern, width) for pattern, width in widths.items() if matches(name, pattern)]
    return found[-1] if found else None


def first_match(name: str, patterns: Iterable[str]) -> str | None:
    """The first of `patterns` that stands for `name`."""
    return next((pattern for pattern in patterns if matches(name, pattern)), None)
