"""Texts and objects that options accept beside the values they keep."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from datafree.config.base import Frozen
from datafree.files import IMAGE_FORMAT, header
from datafree.user_code import FROM_FILE

_UNITS = {"s": 1, "m": 60, "h": 3600}


def comma_separated(value: Any) -> Any:
    """``"3,224,224"`` as a tuple of texts; everything else as it is."""
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


def shape(value: Any) -> Any:
    """The shape of an item: from ``"3,224,224"`` or numbers; of several, ``"3,32,32;10"``.

    None from None; of several inputs a tuple of tuples.

    Raises:
        ValueError: anything but whole numbers of at least 1.
    """
    if value is None:
        return None
    parts, several = _parts(value)
    try:
        shapes = [tuple(int(size) for size in part) for part in (parts if several else [parts])]
        wrong = any(min(sizes, default=1 if several else 0) < 1 for sizes in shapes)
    except (TypeError, ValueError):
        shapes, wrong = [], True
    if wrong or (isinstance(value, str) and () in shapes):
        raise ValueError(
            f"{value!r} is not a shape such as 3,224,224 (channels, height, width), and not one of"
            " each input, 3,32,32;10"
        )
    return shapes[0] if len(shapes) == 1 else tuple(shapes)


def by_channel(value: Any) -> Any:
    """Numbers from ``"0.5,0.5,0.5"``; of several inputs, ``"0.5,0.5,0.5;"``, a tuple of tuples.

    One number by itself is a tuple of one.

    Raises:
        ValueError: anything but numbers.
    """
    if value is None:
        return None
    parts, several = _parts(value)
    try:
        found = [tuple(float(one) for one in part) for part in (parts if several else [parts])]
    except (TypeError, ValueError):
        raise ValueError(
            f"{value!r} is not a number per channel, such as 0.485,0.456,0.406"
        ) from None
    return tuple(found) if several else found[0]


def _parts(value: Any) -> tuple[Any, bool]:
    """What a shape or means are made of, and whether these are those of several inputs."""
    parts = separated(value)
    if not isinstance(parts, Iterable):
        return (parts,), False
    parts = tuple(cast("Iterable[Any]", parts))
    return parts, bool(parts) and all(isinstance(part, tuple | list) for part in parts)


def separated(value: Any) -> Any:
    """``"3,32,32;10"`` as a tuple of tuples of texts, ``"10"`` as one of texts."""
    if not isinstance(value, str):
        return value
    if ";" not in value:
        return comma_separated(value)
    return tuple(comma_separated(part) if part.strip() else () for part in value.split(";"))


def seconds(value: Any) -> float | None:
    """Seconds from a number, ``90s``, ``30m`` or ``1.5h``; None from None.

    Raises:
        ValueError: the text is not of this form, or the time not more than 0.
    """
    if value is None:
        return None
    text = str(value).strip()
    unit = _UNITS.get(text[-1:])
    try:
        found = float(text) if unit is None else float(text[:-1]) * unit
    except ValueError:
        raise ValueError(
            f"{value!r} is not understood: write seconds, minutes or hours as 90s, 30m or 1.5h"
        ) from None
    if not found > 0:
        raise ValueError(f"{value!r} is no time: give more than 0 seconds")
    return found


def points(value: Any) -> float | None:
    """Points of a hundred from a number or ``1%``; None from None.

    Raises:
        ValueError: the text is not of this form, or not more than 0 and at most 100.
    """
    if value is None:
        return None
    try:
        found = float(str(value).strip().removesuffix("%"))
    except ValueError:
        raise ValueError(f"{value!r} is not understood: write points as 1 or 1%") from None
    if not 0 < found <= 100:
        raise ValueError(f"{value!r} is no loss to stay within: give more than 0 and at most 100")
    return found


def sorted_once(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """Every number once, in ascending order."""
    return tuple(sorted(set(numbers)))


def optional_path(value: Any) -> Any:
    """A text as a path."""
    return Path(value) if isinstance(value, str) else value


def reference(value: Any) -> str:
    """The name under which a method is found again: of a name, a class or an instance.

    Raises:
        ValueError: a class that nobody else could find, since it is defined inside a function.
    """
    if value is None:
        return "none"
    if isinstance(value, str):
        return value
    cls = value if inspect.isclass(value) else type(value)
    if not issubclass(cls, Frozen):
        raise ValueError(f"{value!r} is no method: give a name, a class of one or an instance")
    if cls.__module__.partition(".")[0] == __name__.partition(".")[0]:
        return cls.__module__.rpartition(".")[2]
    if "<locals>" in cls.__qualname__:
        raise ValueError(f"{cls.__qualname__} is defined inside a function: move it to a module")
    if cls.__module__.startswith(FROM_FILE):
        return f"{inspect.getfile(cls)}:{cls.__qualname__}"
    return f"{cls.__module__}:{cls.__qualname__}"


def named_methods(values: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Values of a run in which methods given as instances have become names with options.

    A file of images in place of their number becomes the `image_file` and the number it holds;
    another file becomes the method that asks the generator in it.

    Args:
        values: fields of a run.
        names: fields that name a method.

    Raises:
        ValueError: `images` is neither a number nor a file of images or a generator.
    """
    found = dict(values)
    for name in names:
        given = found.get(name)
        if isinstance(given, Frozen):
            own = given.model_dump(exclude_unset=True)
            found[f"{name}_options"] = {**own, **found.get(f"{name}_options", {})}
            found[name] = reference(given)
    images = found.get("images")
    if isinstance(images, Path) or (isinstance(images, str) and not images.isdecimal()):
        if Path(images).suffix != ".safetensors":
            raise ValueError(
                f"images {str(images)!r} is neither a number of images nor a generator's"
                " .safetensors file, nor one of images that synthesize wrote"
            )
        described = header(Path(images))
        if described is not None and IMAGE_FORMAT in described.metadata:
            found["image_file"] = Path(images)
            found["images"] = described.shapes["images"][0]
        else:
            del found["images"]
            found["method"], found["method_options"] = "generator", {"path": str(images)}
    return found
