"""What the text files of a finished run hold; nothing of its network is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from datafree.bounds import first_line, text_of
from datafree.config import RunConfig, load_config
from datafree.errors import ConfigError
from datafree.files import sha256, write_text
from datafree.jsons import from_json, to_json
from datafree.runs.folder import CONFIG, METRICS
from datafree.runs.record import environment

EVALUATIONS = "evaluation.json"
REACHED = ("top1", "miou", "metric")
"""What networks can reach on labelled images."""
_CHANGED = "give it to datafree quantize --config, which makes the run that it describes now"
_SAME = ("data", "limit", "measure", "networks")  # an evaluation that has these replaces another


@dataclass(frozen=True)
class Stored:
    """The record of a finished run.

    Attributes:
        folder: of the run.
        config: as it was asked for.
        record: all that ``metrics.json`` holds.
        evaluations: what `datafree evaluate` measured later, the last one last.
    """

    folder: Path
    config: RunConfig
    record: Mapping[str, Any]
    evaluations: tuple[Mapping[str, Any], ...] = field(default=())

    @property
    def metrics(self) -> dict[str, Any]:
        """As `Result.metrics`; of what was evaluated later the last evaluation."""
        found = dict(self.record["results"])
        if "runtime" in self.record:
            found["runtime"] = self.record["runtime"]
        if self.evaluations:
            last = self.evaluations[-1]
            found = {key: value for key, value in found.items() if key not in REACHED}
            found |= {key: last[key] for key in (*REACHED, "test_images") if key in last}
        return found

    @property
    def version(self) -> str | None:
        """The release of datafree that wrote it."""
        return _version_in(self.record)


def read_run(folder: Path) -> Stored:
    """Read the record of the run in `folder`.

    Raises:
        ConfigError: there is no run, or it is unfinished, damaged, or of another version.
    """
    if not (folder / CONFIG).is_file():
        raise ConfigError(_no_run(folder))
    if not (folder / METRICS).is_file():
        raise ConfigError(
            f"{folder} holds no finished run: datafree quantize --resume {folder} goes on with it"
        )
    record = _record_in(folder / METRICS)
    try:
        config = load_config(folder / CONFIG)
    except ConfigError as error:
        written, own = _version_in(record), version("datafree")
        if written in (None, own):
            raise
        raise ConfigError(
            f"{folder} was written by datafree {written}, and this is {own}: install that one to"
            f" read it ({error})"
        ) from None
    check_hash(folder, CONFIG, record, _CHANGED)
    return Stored(folder, config, record, _evaluations_in(folder / EVALUATIONS))


def check_hash(folder: Path, name: str, record: Mapping[str, Any], what: str) -> None:
    """Refuse the file `name` of a finished run that is not the one the run wrote.

    Args:
        folder: of the run.
        name: of the file; one that is missing, or that the record does not know, passes.
        record: what ``metrics.json`` holds.
        what: to do about it.

    Raises:
        ConfigError: it has other content.
    """
    path, written = folder / name, record.get("hashes", {}).get(name)
    if written is not None and path.is_file() and sha256(path) != written:
        raise ConfigError(f"{path} is not the file that the run wrote: {what}")


def add_evaluation(folder: Path, measured: Mapping[str, Any]) -> None:
    """Put what was `measured` into the run in `folder`, in place of the same measured before."""
    known = _evaluations_in(folder / EVALUATIONS)
    kept = [one for one in known if any(one.get(name) != measured.get(name) for name in _SAME)]
    told = {**measured, "date": f"{datetime.now(UTC):%Y-%m-%d}", "environment": environment()}
    write_text(folder / EVALUATIONS, to_json([*kept, told], indent=2) + "\n")


def _no_run(folder: Path) -> str:
    if not folder.exists():
        return f"there is no folder {folder}: give one that datafree quantize wrote"
    if not folder.is_dir():
        return f"{folder} is a file: give the folder of a run, which datafree quantize wrote"
    inside = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
    hint = f"; {inside[0]} in it is one" if inside else ""
    return f"{folder} is not a run: give the folder that datafree quantize wrote{hint}"


def _record_in(path: Path) -> dict[str, Any]:
    try:
        found = from_json(text_of(path))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {first_line(error)}; quantize again") from None
    results: object = found.get("results") if isinstance(found, dict) else None
    if not isinstance(results, dict) or "teacher" not in results:
        raise ConfigError(f"{path} is not the record of a run: quantize again")
    return cast("dict[str, Any]", found)


def _version_in(record: Mapping[str, Any]) -> str | None:
    """As it stands in the record; None where it does not, whatever stands there instead."""
    place: object = record
    for key in ("environment", "packages", "datafree"):
        place = cast("dict[str, object]", place).get(key) if isinstance(place, dict) else None
    return place if isinstance(place, str) else None


def _evaluations_in(path: Path) -> tuple[Mapping[str, Any], ...]:
    """Evaluations in the file at `path`; none where it is missing or damaged."""
    try:
        found: object = from_json(text_of(path))
    except (OSError, ValueError):
        return ()
    entries = cast("list[Any]", found) if isinstance(found, list) else []
    return tuple(one for one in entries if isinstance(one, dict))
