"""Runs as files, and one choice laid over another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from datafree.bounds import first_line, text_of
from datafree.config.base import build
from datafree.config.fields import in_panels
from datafree.config.options import METHODS
from datafree.config.reading import LARGEST, yaml_of
from datafree.config.run import RunConfig
from datafree.config.scheme import TARGETED
from datafree.config.widths import name_patterns
from datafree.errors import ConfigError
from datafree.files import write_text

_EXCLUSIVE = (("average_bits", "budget"),)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a run: `base` with `changes` laid over it.

    Options of a method are added to those of `base`, unless another method is named, and so are
    layers with bits of their own and layers kept in float; an average replaces a budget, and back.
    """
    moved = "target" in changes and changes["target"] != base.get("target", changes["target"])
    # What another target settled does not bind this one.
    base = {k: v for k, v in base.items() if not (moved and k in TARGETED)}
    merged = {**base, **changes}
    for name in METHODS:
        key = f"{name}_options"
        same = name not in changes or changes[name] == base.get(name)
        kept = base.get(key, {}) if same else {}
        if key in merged:
            merged[key] = {**kept, **changes.get(key, {})}
    if changes.get("layer_bits") and base.get("layer_bits"):
        own = changes["layer_bits"]
        kept = {name: bits for name, bits in base["layer_bits"].items() if name not in own}
        merged["layer_bits"] = {**kept, **own}  # of several patterns the last one holds
    if changes.get("keep_float") and base.get("keep_float"):
        added = name_patterns(changes["keep_float"])
        merged["keep_float"] = (*name_patterns(base["keep_float"]), *added)
    for pair in _EXCLUSIVE:
        given = [name for name in pair if changes.get(name) is not None]
        if len(given) == 1:
            merged |= {name: None for name in pair if name not in given and name in merged}
    return merged


def distillation(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a run that distills: `base` with the given `DistillOptions` laid over it."""
    bits = changes.get("bits", "float")
    fields = merge(base, {key: value for key, value in changes.items() if key != "bits"})
    return {**fields, "float_student": True} if bits == "float" else {**fields, "bits": bits}


def load_config(path: Path) -> RunConfig:
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


def save_config(config: RunConfig, path: Path) -> None:
    """Write `config` to `path` as YAML, atomically, every default spelled out."""
    values = config.model_dump(mode="json")
    ordered = {name: values[name] for name in in_panels(RunConfig)}
    write_text(path, yaml.safe_dump(ordered, sort_keys=False))
