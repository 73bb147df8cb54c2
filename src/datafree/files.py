"""Files that are whole or absent: atomic writes and hashes."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError, safe_open

from datafree.errors import OutputError, OutputExistsError

IMAGE_FORMAT = "datafree-images-1"
"""Entry of the header of a file of images."""
TEMPORARY = ".datafree-"
"""How names of files begin that are being written."""


@dataclass(frozen=True)
class Header:
    """What a safetensors file says before its values.

    Attributes:
        metadata: texts by name.
        shapes: of the tensors, by name.
    """

    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]


def header(path: Path) -> Header | None:
    """The header of the safetensors file at `path`; None where there is none to be read."""
    try:
        with safe_open(path, framework="np") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            return Header(file.metadata() or {}, shapes)
    except (OSError, SafetensorError):
        return None


def refuse_existing(path: Path | str, *, force: bool, folder: bool = False) -> None:
    """Refuse an output that is there, before any work is done for it; nothing is opened.

    Args:
        path: of the output.
        force: replace it, if it is of the kind that is written.
        folder: it may be a folder.

    Raises:
        OutputExistsError: it is there, and `force` is not set.
        OutputError: it is neither a regular file nor, where that may be, a folder.
    """
    path = Path(path)
    if not (folder and path.is_dir()):
        _refuse_irregular(path)
    if path.exists() and not force:
        raise OutputExistsError(
            f"{path} exists: choose another output, or pass --force to replace it"
        )


def _refuse_irregular(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} is no regular file: choose another output")


@contextmanager
def atomic_path(path: Path | str) -> Generator[Path]:
    """Give a temporary path beside `path`, renamed to it on success and removed on failure.

    The temporary name keeps the suffix of `path`, since some writers look at it. The folder has to
    be there: one that vanished is not made anew, with this one file in it.

    Raises:
        OutputError: `path` is there and no regular file, or it cannot be written.
    """
    path = Path(path)
    _refuse_irregular(path)
    try:
        handle, name = tempfile.mkstemp(
            prefix=f"{TEMPORARY}{path.stem}-", suffix=path.suffix, dir=path.parent
        )
    except OSError as error:
        raise _not_written(path, error) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError, RuntimeError) as error:
        if not _failed_write(error):
            raise
        raise _not_written(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what processes that were killed while they wrote left in `folder`."""
    for path in folder.glob(f"{TEMPORARY}*"):
        if path.is_file():
            path.unlink(missing_ok=True)


def make_folder(path: Path, *, parents: bool = False) -> None:
    """Make the folder `path`, unless it is there.

    Args:
        path: of the folder.
        parents: those above it too. Without it a vanished one is not made anew.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        path.mkdir(parents=parents, exist_ok=True)
    except OSError as error:
        raise _not_written(path, error) from error


def _failed_write(error: Exception) -> bool:
    """Whether a writer failed at the file itself: each library says so in its own way."""
    return isinstance(error, OSError | SafetensorError) or "inline_container" in str(error)


def _not_written(path: Path, error: Exception) -> OutputError:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    reason = text.splitlines()[0] if text else type(error).__name__
    if isinstance(error, FileNotFoundError) and not path.parent.exists():
        reason = f"the folder {path.parent} is not there"
    return OutputError(
        f"cannot write {path}: {reason}; make room or choose another place, and the same command"
        " goes on"
    )


def write_text(path: Path | str, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


class Sink(io.RawIOBase):
    """A file that takes whatever is written to it, and says afterwards what failed.

    Torch writes archives in C++, which ends the whole process where a write fails while it cleans
    up after another one that did.
    """

    def __init__(self, file: IO[bytes]) -> None:
        """Write to `file`, which can be sought in."""
        super().__init__()
        self._file = file
        self._failed: OSError | None = None

    def writable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """As the file."""
        return self._file.seekable()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As the file."""
        return self._file.seek(offset, whence)

    def write(self, data: Any) -> int:
        """Write `data`, unless a write has failed before."""
        self._try(lambda: self._file.write(data))
        return len(data)

    def flush(self) -> None:
        """Hand what was written to the system."""
        self._try(self._file.flush)

    def check(self) -> None:
        """Raise the `OSError` of the first write that failed."""
        if self._failed is not None:
            raise self._failed

    def _try(self, step: Callable[[], object]) -> None:
        if self._failed is None:
            try:
                step()
            except OSError as error:
                self._failed = error


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of the file at `path`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
