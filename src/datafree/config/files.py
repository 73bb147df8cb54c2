"""Runs as files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from datafree.bounds import first_line, text_of
from datafree.config.base import build
from datafree.config.fields import in_panels
from datafree.config.merging import merge
from datafree.config.reading import LARGEST, yaml_of
from datafree.config.run import RunConfig
from datafree.errors import ConfigError
from datafree.files import write_text


def distillation(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a run that distills: `base` with the given `DistillOptions` laid over it."""
    bits = changes.get("bits", "float")
    fields = merge(base, {key: value for key, value in changes.items() if key != "bits"})
    return {**fields, "float_student": True} if bits == "float" else {**fields, "bits": bits}


def load_config(path: Path | str) -> RunConfig:
    """Read a `RunConfig` from a YAML file.

    Raises:
        ConfigError: the file is missing, not YAML, or not a run configuration.
    """
    try:
        values: object = yaml_of(text_of(path, LARGEST))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read configuration {path}: {first_line(error)}") from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} is not a run configuration: expected keys such as model, bits, method"
        )
    return build(
        RunConfig, {str(key): value for key, value in values.items()}, f"configuration {path}"
    )


def save_config(config: RunConfig, path: Path | str) -> None:
    """Write `config` to `path` as YAML, atomically, every default spelled out."""
    values = config.model_dump(mode="json")
    ordered = {name: values[name] for name in in_panels(RunConfig)}
    write_text(path, yaml.safe_dump(ordered, sort_keys=False))
