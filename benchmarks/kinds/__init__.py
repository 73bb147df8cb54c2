"""Ways to measure a cell, one file each: the stem of the file is what a table calls it."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from benchmarks.kinds.base import Bench, Kind
from datafree.config import RunConfig, build
from datafree.errors import ConfigError, UnknownNameError

__all__ = ["Bench", "Kind", "kind_and_config"]


def kind_and_config(fields: Mapping[str, Any], what: str) -> tuple[Kind, RunConfig]:
    """How a cell is measured, and the run it is about.

    Args:
        fields: of the cell, as `Table.fields` has them.
        what: the cell in words, for the message.

    Raises:
        ConfigError: no such kind, or a field that neither it nor a run has; the message names it.
    """
    cls = _kind(str(fields["kind"]))
    own = {name: value for name, value in fields.items() if name in cls.model_fields}
    rest = {name: value for name, value in fields.items() if name not in own and name != "kind"}
    if unknown := [name for name in rest if name not in RunConfig.model_fields]:
        known = ", ".join(cls.model_fields)
        raise ConfigError(
            f"{what}: {unknown[0]} is neither a field of a run nor of the kind"
            f" {fields['kind']}, which has {known}"
        )
    # Tables compare methods as papers have them, unless they are about a runtime.
    return build(cls, own, what), build(RunConfig, {"target": "paper", **rest}, what)


def _kind(name: str) -> type[Kind]:
    names = [module.name for module in pkgutil.iter_modules(__path__) if module.name != "base"]
    if name not in names:
        raise UnknownNameError("kind of measurement", name, names)
    module = import_module(f"{__name__}.{name}")
    (found,) = (
        cls
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, Kind) and cls.__module__ == module.__name__
    )
    return found
