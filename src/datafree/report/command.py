"""The command and the call that repeat a run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datafree.config import RunConfig
from datafree.config.fields import option_name

_LINE = 110  # letters
_IN_MEMORY = "<"  # how sources begin that have no name


def command(config: RunConfig, output: str) -> str | None:
    """The command line that repeats a run, with the options that differ from their defaults.

    Args:
        config: of the run, as it was asked for.
        output: name of the folder.

    Returns:
        None of a network that was in memory, which no command line can name.
    """
    if any(str(name or "").startswith(_IN_MEMORY) for name in (config.model, config.student)):
        return None
    changed = changes(config)
    distilled = config.student is not None
    words = ["datafree", "distill" if distilled else "quantize", config.model]
    if distilled:
        changed.pop("training", None)
        if changed.pop("float_student", False):
            changed.pop("bits", None)
        else:
            changed["bits"] = config.bits
    for name, value in changed.items():
        words += _options(name, value)
    return shlex.join([*words, "--output", output])


def folded(text: str) -> str:
    """A command line with an option a line, where it is long."""
    if len(text) <= _LINE:
        return text
    lines: list[list[str]] = [[]]
    for word in shlex.split(text):
        if word.startswith("--"):
            lines.append([])
        lines[-1].append(word)
    return " \\\n  ".join(shlex.join(line) for line in lines)


def call(config: RunConfig) -> str:
    """The Python call that repeats a run."""
    changed = changes(config)
    function = "quantize"
    if config.student is not None:
        function = "distill"
        changed.pop("training", None)
        if changed.pop("float_student", False):
            changed.pop("bits", None)
    first = "model" if config.model.startswith(_IN_MEMORY) else repr(config.model)
    arguments = [first]
    for name, value in changed.items():
        unnamed = isinstance(value, str) and value.startswith(_IN_MEMORY)
        shown = str(value) if isinstance(value, Path) else value
        arguments.append(f"{name}=student" if unnamed else f"{name}={shown!r}")
    inner = "".join(f"    {argument},\n" for argument in arguments)
    return f"import datafree\n\nresult = datafree.{function}(\n{inner})"


def changes(config: RunConfig) -> dict[str, Any]:
    """Fields of `config` that differ from their defaults, as options and keywords name them.

    Under the protocol of a paper, these are its own.
    """
    usual = RunConfig(model=config.model, target=config.target, protocol=config.protocol)
    plain = RunConfig(model=config.model, protocol=config.protocol)
    found: dict[str, Any] = {}
    for name in RunConfig.model_fields:
        value = getattr(config, name)
        if name == "model":
            continue
        if name == "protocol":
            changed = value is not None
        else:
            changed = value != getattr(plain if name == "target" else usual, name)
        if changed:
            found[name] = dict(value) if isinstance(value, Mapping) else value
    if "image_file" in found:
        found["images"] = found.pop("image_file")
    return found


def _options(name: str, value: Any) -> list[str]:
    """One field as words of the command line."""
    option = option_name(name)
    if isinstance(value, bool):
        return [option if value else f"--no-{option.removeprefix('--')}"]
    if isinstance(value, Mapping):
        words: list[str] = []
        for key, item in value.items():
            words += [option, f"{key}={json.dumps(item, default=str)}"]
        return words
    return [option, _written(value)]


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        separator = ";" if any(isinstance(part, tuple) for part in value) else ","
        return separator.join(map(_written, value))
    return repr(value) if isinstance(value, float) else str(value)
