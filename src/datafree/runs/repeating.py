"""The configuration of an earlier run, for the same run once more, perhaps on another machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datafree.config import InputSpec, RunConfig, build, load_config
from datafree.config.inputs import told_of
from datafree.errors import ConfigError
from datafree.runs.folder import CONFIG
from datafree.runs.keeping import TEACHER
from datafree.runs.stored import read_run

_FILES = (".pt2", ".onnx", ".py")


def repeated(path: Path) -> RunConfig:
    """The run that the configuration at `path` describes.

    Where its network had no source, or that is gone, the one kept beside `path` takes its place.

    Args:
        path: ``config.yaml`` of a run, or its folder.

    Raises:
        ConfigError: it is no configuration, or the network is neither where it came from nor kept.
    """
    path = path / CONFIG if path.is_dir() else path
    config = load_config(path)
    if not config.in_memory and not _gone(config):
        return config
    kept = path.parent / TEACHER
    if not kept.is_file():
        if config.in_memory:
            raise ConfigError(
                f"{path} is of a network in memory, and no {TEACHER} lies beside it: call quantize"
                " in Python again, with the same output if the run was interrupted"
            )
        return config  # loading says what is missing
    told = read_run(path.parent).metrics.get("input")
    spec = build(InputSpec, told or {}, f"input of {path.parent}")
    known = (
        told_of(spec.inputs)
        if spec.inputs
        else {"input_shape": spec.shape, "mean": spec.mean, "std": spec.std}
    )
    changes: dict[str, Any] = {
        **known, "model": str(kept), "weights_file": None, "classes": None, "keep_teacher": True,
    }  # fmt: skip
    return build(RunConfig, config.model_dump() | changes, f"configuration {path}")


def _gone(config: RunConfig) -> bool:
    """Whether a file that the network came from is no longer there."""
    place, _, name = config.model.rpartition(":")
    source = Path(place or name)
    files = [source] if source.suffix in _FILES else []
    if config.weights_file is not None:
        files.append(config.weights_file)
    return any(not file.exists() for file in files)
