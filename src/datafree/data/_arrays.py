"""Arrays of an ``.npz`` file: their headers are compared with what is stored before any is read."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from numpy.lib import format as npy
from numpy.typing import NDArray

from datafree.bounds import check_ordinary, check_zip, first_line
from datafree.errors import DataError

_ENDING = ".npy"
_KINDS = "biuf"
"""Kinds of numbers that are read: truth values, integers, floats."""
_FLOATS = (2, 4, 8)


class Arrays(Mapping[str, NDArray[Any]]):
    """The arrays in an ``.npz`` file by name, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        """List what is in the file at `path`.

        Raises:
            DataError: it is no such file, or damaged.
        """
        self.path = path
        try:
            check_ordinary(path)
            with path.open("rb") as file:
                bare = file.read(6) == npy.MAGIC_PREFIX
            if bare:
                raise ValueError("it holds one bare array, not an .npz archive")
            with zipfile.ZipFile(path) as archive:
                self.members = {
                    name.removesuffix(_ENDING): name
                    for name in archive.namelist()
                    if name.endswith(_ENDING)
                }
        except Exception as error:  # noqa: BLE001 - a damaged archive can fail in any way
            raise DataError(f"cannot read {path}: {first_line(error)}") from None

    def __iter__(self) -> Any:
        """The names, in the order of the file."""
        return iter(self.members)

    def __len__(self) -> int:
        """Number of arrays."""
        return len(self.members)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """The array called `name`, in the machine's order of bytes.

        Raises:
            DataError: it is damaged, not of plain numbers, or not as large as its header claims.
        """
        member = self.members[name]
        try:
            check_zip(self.path, [member])
            with zipfile.ZipFile(self.path) as archive:
                with archive.open(member) as file:
                    _check(file, archive.getinfo(member).file_size)
                with archive.open(member) as file:
                    array: NDArray[Any] = npy.read_array(file, allow_pickle=False)
                    file.read(1)  # at the end the checksum is compared
        except Exception as error:  # noqa: BLE001 - a damaged archive can fail in any way
            reason = first_line(error)
            raise DataError(f"cannot read {self.path}: {name}: {reason}") from None
        return array.astype(array.dtype.newbyteorder("="), copy=False)


def _check(file: IO[bytes], stored: int) -> None:
    """Refuse what is no array of plain numbers, or claims another size than `stored` bytes.

    Raises:
        ValueError: it does.
    """
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of .npy is not read")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds objects, which are pickled, and pickles are never read")
    if dtype.kind not in _KINDS or (dtype.kind == "f" and dtype.itemsize not in _FLOATS):
        raise ValueError(f"it holds {dtype}, and only plain numbers are read")
    if any(size < 0 for size in shape):
        raise ValueError(f"it claims the shape {shape}")
    claimed, held = math.prod(shape) * dtype.itemsize, stored - file.tell()
    if claimed != held:
        raise ValueError(f"it claims {claimed} bytes ({dtype} {shape}) and holds {held}")
