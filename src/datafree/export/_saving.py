"""ONNX models as files, their tensors beside them where one file could not hold them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import uses_external_data

ONE_FILE = 2**31 - 2**20
"""Bytes of tensors that one file may hold: what protobuf writes, with room for all else."""
_INSIDE = 1024  # smaller tensors stay: runtimes infer shapes from some of them

_OURS = re.compile(r"weights-[0-9a-f]{12}\.data")


def save(model: onnx.ModelProto, path: Path, *, limit: int = ONE_FILE) -> int:
    """Write `model`; above `limit` bytes its tensors go into a second file beside it.

    The second file is called after its content, so that it never replaces that of another model.

    Args:
        model: whose tensors are moved out of it where there is a second file.
        path: to write to.
        limit: bytes of tensors that one file may have.

    Returns:
        Bytes of both files.
    """
    tensors = [tensor for tensor in model.graph.initializer if tensor.HasField("raw_data")]
    if sum(len(tensor.raw_data) for tensor in tensors) <= limit:
        path.write_bytes(model.SerializeToString(deterministic=True))
        return path.stat().st_size
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.raw_data)
    beside = path.parent / f"weights-{digest.hexdigest()[:12]}.data"
    beside.unlink(missing_ok=True)  # onnx appends to what is there
    onnx.save_model(
        model, path, save_as_external_data=True, all_tensors_to_one_file=True,
        location=beside.name, size_threshold=_INSIDE,
    )  # fmt: skip
    return path.stat().st_size + beside.stat().st_size


def beside(path: Path) -> set[Path]:
    """Files that the model at `path` keeps tensors in, as `save` names them.

    None where there is no model; what else a stranger's model names is not ours to remove.
    """
    if not path.is_file():
        return set()
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError):
        return set()
    entries = (
        entry.value
        for tensor in model.graph.initializer
        if uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    )
    return {path.parent / name for name in entries if _OURS.fullmatch(name)}
