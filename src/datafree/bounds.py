"""Files of strangers: what they claim is compared with what they are before anything is made of it.

A few bytes can claim an array of terabytes, hold an archive that expands a thousandfold, or nest
lists deeper than Python counts. Readers ask here first. Everything raises `ValueError` with one
line that does not name the file, for the reader to put behind its name.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import IO, Any, NoReturn, cast

LARGEST_TEXT = 2**30
"""Bytes of the largest text file that is read: twice the annotations of COCO."""
LARGEST_VALUES = 2**28
"""Numbers in the largest tensor that a reader makes of a file that does not hold them: a GiB."""
LARGEST_ITEM = 2**26
"""Numbers of one item of an input: an image of 3 x 4729 x 4729."""
DEEPEST = 100
"""Levels that lists and dicts may be nested in each other."""
_SMALL = 2**28
_RATIO = 100


def first_line(error: BaseException) -> str:
    """What an error says first, 300 signs at most; what it is where it says nothing.

    Of an error of the system its reason: number and file are left to who tells it.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:300]


def text_of(path: Path | str, most: int = LARGEST_TEXT, encoding: str = "utf-8") -> str:
    """The text in the file at `path`.

    Args:
        path: an ordinary file: a device or a pipe may never end.
        most: bytes it may have.
        encoding: of the text.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no ordinary file, too large, or no such text.
    """
    path = Path(path)
    check_ordinary(path)
    size = path.stat().st_size
    if size > most:
        raise ValueError(f"it has {size} bytes, and {most} are the most")
    try:
        return path.read_text(encoding=encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no text of {encoding}: {error.reason}") from None


def check_shape(shape: Iterable[int]) -> None:
    """Refuse an item that is too large to be made up.

    Raises:
        ValueError: it has more than `LARGEST_ITEM` numbers.
    """
    sizes = tuple(shape)
    if math.prod(sizes) > LARGEST_ITEM:
        raise ValueError(f"one item of {sizes} has more than {LARGEST_ITEM} numbers")


def check_ordinary(path: Path | str) -> None:
    """Refuse a device or a pipe, which may never end.

    Raises:
        OSError: there is nothing at `path`.
        ValueError: it is no ordinary file.
    """
    path = Path(path)
    if not path.is_file():
        path.stat()  # says why where nothing is there
        raise ValueError("it is a folder" if path.is_dir() else "it is no ordinary file")


def json_of(text: str | bytes, *, strict: bool = False) -> Any:
    """The value of a JSON text.

    Args:
        text: of a file.
        strict: refuse NaN and infinities, which are no JSON and which Python writes all the same.

    Raises:
        ValueError: it is none, or nested deeper than `DEEPEST`.
    """
    try:
        value = json.loads(text, parse_constant=_refused if strict else None)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels") from None
    check_depth(value)
    return value


def _refused(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def check_depth(value: Any) -> None:
    """Refuse lists and dicts in each other beyond `DEEPEST` levels.

    Raises:
        ValueError: they are.
    """
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        level = [inner for one in level for inner in _inside(one)]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {DEEPEST} levels")


def _inside(value: Any) -> Iterable[Any]:
    """Lists and dicts directly in `value`."""
    if isinstance(value, dict):
        inner: Iterable[Any] = cast("dict[Any, Any]", value).values()
    else:
        inner = cast("list[Any]", value) if isinstance(value, list) else ()
    return [one for one in inner if isinstance(one, dict | list)]


def check_zip(file: Path | IO[bytes], names: Iterable[str] | None = None) -> None:
    """Refuse an archive whose members expand to much more than it holds.

    Members that lie over each other count each by itself. What expands to `_SMALL` bytes in all is
    let through, since that does no harm.

    Args:
        file: a ZIP archive.
        names: of the members that will be read; None is all.

    Raises:
        ValueError: it expands too far, or is no archive.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            wanted = None if names is None else set(names)
            members = [m for m in archive.infolist() if wanted is None or m.filename in wanted]
    except Exception as error:  # noqa: BLE001 - a damaged directory can fail in any way
        raise ValueError(first_line(error)) from None
    whole = sum(member.file_size for member in members)
    stored = file.stat().st_size if isinstance(file, Path) else file.seek(0, os.SEEK_END)
    if whole > max(_SMALL, _RATIO * stored):
        raise ValueError(
            f"its {stored} bytes expand to {whole}, more than {_RATIO} times as many: write it"
            " without compression if that is meant"
        )


def check_stored(sizes: Iterable[int], stored: int) -> None:
    """Refuse an archive of torch, which is never compressed, whose members are larger than it.

    Args:
        sizes: of the members, bytes.
        stored: bytes of the archive.

    Raises:
        ValueError: they are.
    """
    whole = sum(sizes)
    if whole > stored:
        raise ValueError(
            f"its {stored} bytes expand to {whole}: torch writes archives without compression"
        )


def inside(folder: Path, name: str) -> Path:
    """The file called `name` in `folder`, for a name that a file has.

    Raises:
        ValueError: it leads out of the folder, by its name or by a link in the folder.
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not name or "\0" in name or ".." in parts or Path(name).is_absolute():
        raise ValueError(f"{name[:100]!r} is no name of a file in {folder}")
    path = folder / name
    place = folder
    for part in Path(name).parts:
        place = place / part
        if place.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"{name[:100]!r} is a link that leads out of {folder}: copy the file there"
            )
    return path
