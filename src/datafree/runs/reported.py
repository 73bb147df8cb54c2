"""The page of a finished run, written again from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datafree.config import RunConfig, load_config
from datafree.corrections.prepare import prepare
from datafree.data import real_images
from datafree.errors import ConfigError
from datafree.graph.outputs import together
from datafree.images import SyntheticSet
from datafree.jsons import from_json
from datafree.report.headline import MEASURES
from datafree.runs.finished import restored
from datafree.runs.pipeline import Result
from datafree.runs.reporting import Told, weights_of, write_page


def report_run(folder: Path, images: Path | None = None, *, trust_code: bool = False) -> Path:
    """Write ``report.html`` of a finished run again.

    Args:
        folder: of the run.
        images: real images to compare the synthetic ones with: a folder of pictures, or labelled
            data as for `data`, whose labels are not looked at. None takes the labelled images of
            the run, if it has some that are still there.
        trust_code: Python code that the run's configuration names may run.

    Returns:
        Path of the page.

    Raises:
        ConfigError: `folder` holds no finished run.
        UntrustedCodeError: it names code, and `trust_code` is not set.
        DataError: `images` cannot be read or do not fit the network.
    """
    result = restored(folder, trust_code=trust_code)
    asked = load_config(folder / "config.yaml")
    record = _record(folder)
    told = Told(
        asked=asked,
        config=result.config,
        spec=result.spec,
        teacher=together(result.teacher),
        student=together(result.student),
        images=result.images,
        metrics={**record["results"], "runtime": record.get("runtime", {}), **_later(folder)},
        seconds=record.get("seconds", {}),
        environment=record.get("environment", {}),
        floats=_floats(result),
    )
    return write_page(folder, told, _real(images, result, asked))


def _floats(result: Result) -> dict[str, Any]:
    """Weights before they were quantized; none of a student that was trained."""
    if result.config.tuning is not None:
        return {}
    return weights_of(prepare(together(result.teacher), result.config)[0])


def _real(images: Path | None, result: Result, asked: RunConfig) -> SyntheticSet | None:
    if not len(result.images):
        return None
    path = images
    if path is None and asked.data is not None and asked.data.exists():
        path = asked.data
    return path and real_images(path, result.spec, len(result.images), asked.seed)


def _later(folder: Path) -> dict[str, Any]:
    """What `datafree evaluate` measured last on labelled images; nothing where it did not."""
    try:
        last = from_json((folder / "evaluation.json").read_text(encoding="utf-8"))[-1]
        return {name: last[name] for name in (*MEASURES, "test_images") if name in last}
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return {}


def _record(folder: Path) -> dict[str, Any]:
    """What `metrics.json` of a finished run holds."""
    path = folder / "metrics.json"
    try:
        record = from_json(path.read_text(encoding="utf-8"))
        record["results"].get("teacher")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(
            f"{path} cannot be read: quantize with the same options goes on with the run"
        ) from None
    return record
