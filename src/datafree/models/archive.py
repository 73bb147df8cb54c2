"""Reading a stranger's ``.pt2`` file without running anything that is in it.

`torch.export.load` of torch 2.13 must not be given an unknown file. Its source shows these ways for
a file to run code, all of them closed here before torch's deserializer sees the archive:

* ``data/sample_inputs/model.pt`` and the older ``data/weights/model.pt`` and
  ``data/constants/model.pt`` are unpickled with ``weights_only=True`` and, *when that fails*, once
  more with ``weights_only=False``. Here: the first must succeed by itself, the older two are
  refused.
* Weights and constants marked ``use_pickle`` are loaded with ``weights_only=False``, objects among
  the constants with ``pickle.loads``. Here: only raw tensor payloads pass.
* ``data/aotinductor`` holds shared libraries that are loaded. Here: no member that is not expected.
* Shape expressions in ``models/model.json`` go through ``sympy.sympify``, which is ``eval``. Here:
  they are parsed and may only use symbols, numbers, arithmetic and torch's own shape functions
  (`datafree.models.expressions`).
* Operators are looked up as attributes of ``torch``, ``operator`` and ``math`` (``torch.os.system``
  is one). Here: only aten and a few symbolic operators pass.
* Names of arguments are pasted into generated Python source. Here: every string must be a plain
  name.
* Tree specs import modules named in them. Here: only tuples, lists and dicts pass.
* ``guards_code`` is Python source that ``ExportedProgram.module()`` runs. Here: it is dropped; it
  only repeats checks of the input.
* If the archive cannot be read, an older reader with the same faults is tried. Here: it is not.

A file that is small and expands, or claims tensors that it does not hold, is refused as well.
The file is read into memory once, so what was checked is what is loaded. An ordinary
program of tensors needs nothing of what is refused. torch itself still warns against loading files
of strangers: the list above is complete as far as its source was read, not a proof.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.export import ExportedProgram

from datafree.bounds import check_ordinary, check_stored, first_line, json_of
from datafree.errors import ModelError
from datafree.models.expressions import is_shape_expression

if TYPE_CHECKING:
    from torch.export.pt2_archive import PT2ArchiveReader

_READ_THROUGH = (2, 13)
"""The newest torch whose reader was looked through for ways to run code."""
_MODEL = "models/model.json"
_SAMPLE = "data/sample_inputs/model.pt"
_WEIGHTS = "data/weights/model_weights_config.json"
_CONSTANTS = "data/constants/model_constants_config.json"
_REQUIRED = (_MODEL, _SAMPLE, _WEIGHTS, _CONSTANTS)
_MEMBERS = re.compile(
    "|".join(
        (
            r"archive_format|archive_version|byteorder|version|\.data/[\w.]+|\.format_version",
            r"\.storage_alignment|extra/.*",
            *(re.escape(name) for name in _REQUIRED),
            r"data/weights/weight_\d+|data/constants/tensor_\d+",
        )
    )
)
_MOST_MEMBERS = 20_000
_MOST_INPUTS = 1000
_REPEATED = 2**24  # values
_PAYLOAD = re.compile(r"(weight|tensor)_\d+")
_NAME = re.compile(r"[A-Za-z0-9_.\-]*")
_OPERATORS = re.compile(
    r"torch\.ops\.aten\.(?!(from_file|save|load|print|_print|warn|eval|set_data|format)\b)\w+\.\w+"
    r"|torch\.ops\.higher_order\.wrap_with_(set_grad_enabled|autocast)"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_)"
    r"|torch\.sym_(int|float|max|min|not|sum|ite|sqrt)"
    r"|math\.(ceil|floor|trunc)"
)
_FREE_TEXT = frozenset({"torch_version", "as_string", "as_strings", "guards_code"})
_TREES = frozenset({"builtins.tuple", "builtins.list", "builtins.dict", None})


def load_archive(path: Path) -> ExportedProgram:
    """Load a file written by `torch.export.save`, refusing whatever could run code.

    Args:
        path: the ``.pt2`` file.

    Raises:
        ModelError: the file is missing, damaged, of another version of torch, or holds something
            that only loads by running code from the file; the message names it.
    """
    _check_torch(path)
    # What torch.export.load calls first; taken directly to leave out the older reader.
    # Half of the time in which this package is imported, for files that few runs read.
    from torch.export.pt2_archive import PT2ArchiveReader
    from torch.export.pt2_archive._package import load_pt2

    try:
        check_ordinary(path)
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise ModelError(f"cannot read {path}: {reason or error}") from None
    try:
        check_torch_archive(content)  # before torch reads its version, which may expand as well
        _check_archive(PT2ArchiveReader(io.BytesIO(content)), path, len(content))
        _check_whole(content, path)
        program = load_pt2(io.BytesIO(content)).exported_programs["model"]
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged file can fail in any way
        reason = first_line(error)
        raise ModelError(
            f"{path} is not a program written by torch.export.save, or not by a version of torch "
            f"that {torch.__version__} reads: {type(error).__name__}: {reason[:200]}"
        ) from None
    program._guards_code = []  # pyright: ignore[reportPrivateUsage]
    return program


def _check_torch(path: Path) -> None:
    """Refuse to read with a torch whose reader nobody has read: it may run code in new ways."""
    found = tuple(int(number) for number in torch.__version__.split(".")[:2])
    if found > _READ_THROUGH:
        newest = ".".join(map(str, _READ_THROUGH))
        raise ModelError(
            f"cannot read {path} safely with torch {torch.__version__}: its reader was looked"
            f" through up to torch {newest}; install that one, or a newer datafree"
        )


def check_torch_archive(content: bytes | Path) -> None:
    """Refuse an archive of torch that is compressed or has overlapping members.

    Raises:
        ValueError: it is one, or no archive.
    """
    file = content if isinstance(content, Path) else io.BytesIO(content)
    stored = content.stat().st_size if isinstance(content, Path) else len(content)
    with zipfile.ZipFile(file) as archive:
        check_stored((member.file_size for member in archive.infolist()), stored)


def _check_whole(content: bytes, path: Path) -> None:
    """Refuse an archive with a member that is not what was written: torch looks at no checksum."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        _refuse(path, f"it is damaged: the checksum of {damaged} does not fit")


def _check_archive(reader: PT2ArchiveReader, path: Path, stored: int) -> None:
    members = reader.get_file_names()
    if len(members) > _MOST_MEMBERS:
        _refuse(path, f"it has {len(members)} members, and networks have fewer tensors")
    for member in members:
        if not _MEMBERS.fullmatch(member):
            _refuse(path, f"its member {member!r} is not part of an exported program of tensors")
    for member in _REQUIRED:
        if member not in members:
            raise ModelError(f"{path} is not a program written by torch.export.save: no {member}")
    sizes = {member: reader.archive_file.get_record_size(member) for member in members}
    check_stored(sizes.values(), stored)  # as torch reads them, not as Python does
    for config, place in ((_WEIGHTS, "data/weights/"), (_CONSTANTS, "data/constants/")):
        _check_payloads(json_of(reader.read_bytes(config)), place, sizes, path)
    sample = reader.read_bytes(_SAMPLE)
    if sample:
        _check_sample(sample, path)
    _check_tree(json_of(reader.read_bytes(_MODEL)), "", path)


def _check_payloads(
    config: Mapping[str, Any], place: str, sizes: Mapping[str, int], path: Path
) -> None:
    for name, payload in config["config"].items():
        if payload["use_pickle"] is not False or not _PAYLOAD.fullmatch(payload["path_name"]):
            _refuse(path, f"its tensor {name!r} is pickled")
        claimed = math.prod(int(size["as_int"]) for size in payload["tensor_meta"]["sizes"])
        held = sizes.get(place + payload["path_name"], 0)
        # A tensor of one value over and over may hold that once.
        if not 0 <= claimed <= max(held, _REPEATED if held else 0):
            raise ModelError(f"{path}: the tensor {name!r} claims {claimed} values, and holds less")


def _check_sample(sample: bytes, path: Path) -> None:
    try:
        if zipfile.is_zipfile(io.BytesIO(sample)):
            check_torch_archive(sample)
        inputs = torch.load(io.BytesIO(sample), map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001 - torch would now unpickle the same bytes without restraint
        inputs = None
    if not isinstance(inputs, (tuple, dict)):
        _refuse(path, "its example inputs are pickled objects other than tensors")
    if _leaves(inputs) > _MOST_INPUTS:
        _refuse(path, f"its example inputs are more than {_MOST_INPUTS}")


def _leaves(value: object) -> int:
    """Values in `value`, one that stands in several places counted in each; no more than needed."""
    waiting, count = [value], 0
    while waiting and count <= _MOST_INPUTS:
        one = waiting.pop()
        count += 1
        if isinstance(one, dict):
            waiting += cast("dict[Any, Any]", one).values()
        elif isinstance(one, list | tuple):
            waiting += cast("list[Any]", one)
    return count


def _check_tree(value: object, key: str, path: Path) -> None:
    """Walk the serialized program; every string is refused unless its place allows it."""
    if isinstance(value, dict):
        items = cast("dict[str, object]", value)
        for name, item in items.items():
            _check_name(name, path)
            if name == "metadata":
                _check_metadata(item, path)
            elif name == "target" and "inputs" in items and "outputs" in items:
                _check_operator(item, path)
            else:
                _check_tree(item, name, path)
    elif isinstance(value, list):
        for item in cast("list[object]", value):
            _check_tree(item, key, path)
    elif isinstance(value, str):
        _check_string(value, key, path)


def _check_string(text: str, key: str, path: Path) -> None:
    if key == "expr_str":
        if not is_shape_expression(text):
            _refuse(path, f"{text[:60]!r} is not a shape expression")
    elif key == "as_operator":
        _check_operator(text, path)
    elif key in ("in_spec", "out_spec"):
        if text:
            _check_spec(json_of(text)[1], path)
    elif key not in _FREE_TEXT:
        _check_name(text, path)


def _check_name(text: str, path: Path) -> None:
    if not _NAME.fullmatch(text):
        _refuse(path, f"it holds {text[:60]!r} where a name should stand")


def _check_metadata(value: object, path: Path) -> None:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        _refuse(path, "its metadata are not plain text")


def _check_operator(target: object, path: Path) -> None:
    if not isinstance(target, str) or not _OPERATORS.fullmatch(target):
        _refuse(path, f"it calls {target!r}, which is not an operator of a vision network")


def _check_spec(spec: Mapping[str, Any], path: Path) -> None:
    if spec["type"] not in _TREES or (spec["context"] and "__enum__" in spec["context"]):
        _refuse(
            path, f"it takes or returns a {spec['type']}, not tensors in tuples, lists or dicts"
        )
    if spec["context"]:
        _check_tree(json_of(spec["context"]), "", path)
    for child in spec["children_spec"]:
        _check_spec(child, path)


def _refuse(path: Path, reason: str) -> None:
    raise ModelError(f"{path} is refused, loading it could run code from the file: {reason}")
