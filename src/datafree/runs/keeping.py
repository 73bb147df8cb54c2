"""The float network of a run as a file of its folder, so that the folder is enough by itself."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from datafree.config import InputSpec, RunConfig, build
from datafree.errors import ConfigError, ModelError, OutputError
from datafree.files import atomic_path, sha256
from datafree.graph.capture import exported, impersonal
from datafree.models import Teacher
from datafree.models.archive import load_archive

TEACHER = "teacher.pt2"


def to_keep(teacher: Teacher, config: RunConfig) -> ExportedProgram | None:
    """The program of `teacher` that a run with `config` writes; None where it writes none.

    Raises:
        CaptureError: it cannot be exported with a dynamic batch.
    """
    if not config.teacher_kept:
        return None
    model = teacher.model
    return exported(model, teacher.spec) if isinstance(model, nn.Module) else model


def save_teacher(program: ExportedProgram, path: Path, *, own: bool) -> dict[str, Any]:
    """Write `program` to `path`, if it can be read again without running code of the file.

    Args:
        program: of the float network.
        path: ``.pt2`` file.
        own: it was exported here, and may lose what it knows of the source's lines.

    Returns:
        ``bytes`` of the file, or ``error``: why it was not kept.
    """
    if own:
        impersonal(program)
    # A path would put its own, temporary, name into the archive.
    archive = io.BytesIO()
    try:
        torch.export.save(program, archive)
        with atomic_path(path) as temporary:
            temporary.write_bytes(archive.getbuffer())
            load_archive(temporary)
    except OutputError:
        raise
    except ModelError as error:
        return {"error": f"not kept: {str(error).partition(': ')[2] or error}"}
    except Exception as error:  # noqa: BLE001 - torch may refuse a stranger's program in any way
        line = next(iter(str(error).splitlines()), type(error).__name__)
        return {"error": f"not kept: torch.export.save refuses it: {line}"}
    return {"bytes": path.stat().st_size}


def kept_teacher(folder: Path, config: RunConfig, metrics: Mapping[str, Any]) -> Teacher | None:
    """The teacher that a finished run kept; None where it kept none.

    Args:
        folder: of the run.
        config: of the run.
        metrics: what its ``metrics.json`` holds.

    Raises:
        ConfigError: the file is not the one that was written.
        ModelError: it is damaged.
    """
    path = folder / TEACHER
    if not path.is_file() or "input" not in metrics["results"]:
        return None
    if sha256(path) != metrics.get("hashes", {}).get(TEACHER):
        raise ConfigError(f"{path} is not the file that the run wrote: quantize again")
    spec = build(InputSpec, metrics["results"]["input"], f"input in {folder / 'metrics.json'}")
    digest = str(metrics["results"]["teacher"])
    return Teacher(load_archive(path), spec, config.model, digest)
