"""Finished runs side by side: what was measured, and where their settings differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datafree.config.fields import written
from datafree.errors import ConfigError
from datafree.runs.page import label_of, reached, size_in_words, verdict_of
from datafree.runs.stored import Stored, read_run
from datafree.runs.weak import lossy

_FEWEST = 2
_MACHINE = ("processor", "threads", "gpu")
_UNCOMPARED = ("keep_teacher", "export", "latency", "class_names", "device", "images_per_batch")
"""Settings that change nothing of a student."""


@dataclass(frozen=True)
class Compared:
    """Several runs side by side; all cells are text, empty where a run has nothing.

    Attributes:
        names: of the runs.
        measures: name of each, and its value in every run.
        settings: those in which the runs differ, likewise.
        layers: signal-to-noise ratio in dB by run and layer, in the order of the network.
        notes: what must be known before numbers are compared.
    """

    names: tuple[str, ...]
    measures: tuple[tuple[str, tuple[str, ...]], ...]
    settings: tuple[tuple[str, tuple[str, ...]], ...]
    layers: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...]


def compare_runs(folders: Sequence[Path]) -> Compared:
    """Compare the finished runs in `folders`, by their records alone.

    Raises:
        ConfigError: fewer than two, or one that is no finished run.
    """
    if len(folders) < _FEWEST:
        raise ConfigError("give at least two runs to compare: datafree compare RUN RUN")
    runs = [read_run(folder) for folder in folders]
    names = _names(folders)
    measures = tuple(
        (name, cells) for name, cells in _measures(runs) if any(cell for cell in cells)
    )
    layers = {name: lossy(run.metrics) for name, run in zip(names, runs, strict=True)}
    return Compared(names, measures, _settings(runs), layers, tuple(_notes(runs)))


def _names(folders: Sequence[Path]) -> tuple[str, ...]:
    """The last part of each path, as many parts as tell them apart."""
    whole = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, whole)) + 1):
        names = ["/".join(parts[-count:]) for parts in whole]
        if len(set(names)) == len(names):
            return tuple(names)
    return tuple(f"{'/'.join(parts[-1:])} ({k})" for k, parts in enumerate(whole, 1))


def _measures(runs: Sequence[Stored]) -> list[tuple[str, tuple[str, ...]]]:
    rows: list[tuple[str, Callable[[Stored], str]]] = [
        ("network", lambda run: run.config.model),
        ("bits", lambda run: label_of(run.config)),
        ("policy", lambda run: str(run.config.policy)),
        ("protocol", lambda run: run.config.protocol_told or ""),
        ("verdict", lambda run: verdict_of(run.metrics)),
        *_reached_rows(runs),
        ("test images", lambda run: str(run.metrics.get("test_images", ""))),
        ("same prediction", lambda run: _held(run, "agreement", "{:.1f} %")),
        ("KL", lambda run: _held(run, "kl", "{:.4f}")),
        ("relative error", lambda run: _held(run, "error", "{:.4f}")),
        ("weakest layer", _weakest),
        ("student.onnx", _size),
        ("weights of float", _share),
        ("integer layers", _integers),
        *((f"ms, {batch} at once", _latency(batch)) for batch in _batches(runs)),
        *((f"speed-up, {batch} at once", _speed(batch)) for batch in _batches(runs)),
        ("seconds in all", _seconds),
    ]
    return [(name, tuple(cell(run) for run in runs)) for name, cell in rows]


def _reached_rows(runs: Sequence[Stored]) -> list[tuple[str, Callable[[Stored], str]]]:
    """A row for every measure and network that any of the runs has."""
    found: dict[tuple[str, str], str] = {}
    for run in runs:
        for key, (name, values, unit) in reached(run.metrics).items():
            found |= {(key, network): f"{name} of {network},{unit}" for network in values}

    def cell(key: str, network: str) -> Callable[[Stored], str]:
        def told(run: Stored) -> str:
            value = run.metrics.get(key, {}).get(network)
            return "" if value is None else f"{value:.2f}"

        return told

    return [(title.strip(","), cell(*place)) for place, title in found.items()]


def _held(run: Stored, key: str, form: str) -> str:
    value = run.metrics.get("held_out", {}).get(key)
    return "" if value is None else form.format(value)


def _weakest(run: Stored) -> str:
    noise = lossy(run.metrics)
    if not noise:
        return ""
    name = min(noise, key=lambda key: noise[key])
    return f"{name}, {noise[name]:.1f} dB"


def _size(run: Stored) -> str:
    size = run.metrics.get("onnx", {}).get("bytes")
    return "" if size is None else size_in_words(int(size))


def _share(run: Stored) -> str:
    told = run.metrics.get("onnx", {})
    if not told.get("float_weight_bytes"):
        return ""
    return f"{100 * told['weight_bytes'] / told['float_weight_bytes']:.1f} %"


def _integers(run: Stored) -> str:
    facts = run.metrics.get("runtime", {})
    return f"{facts['integer']} of {facts['total']}" if "integer" in facts else ""


def _batches(runs: Sequence[Stored]) -> list[int]:
    rows = [row for run in runs for row in run.metrics.get("runtime", {}).get("latency_ms", ())]
    return sorted({int(row["batch"]) for row in rows if row["threads"] == 1})


def _row(run: Stored, batch: int) -> Mapping[str, Any] | None:
    rows = run.metrics.get("runtime", {}).get("latency_ms", ())
    return next((r for r in rows if r["threads"] == 1 and r["batch"] == batch), None)


def _latency(batch: int) -> Callable[[Stored], str]:
    def told(run: Stored) -> str:
        row = _row(run, batch)
        return "" if row is None else f"{row['student']:.3g}"

    return told


def _speed(batch: int) -> Callable[[Stored], str]:
    def told(run: Stored) -> str:
        row = _row(run, batch)
        return "" if row is None else f"{row['float'] / row['student']:.2f}"

    return told


def _seconds(run: Stored) -> str:
    seconds = run.record.get("seconds", {})
    return f"{sum(seconds.values()):.0f}" if seconds else ""


def _settings(runs: Sequence[Stored]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Settings in which the runs differ; options of methods one by one."""
    flat = [_flat(run.config.model_dump(mode="json")) for run in runs]
    names = dict.fromkeys(name for one in flat for name in one)
    rows: list[tuple[str, tuple[str, ...]]] = []
    for name in names:
        cells = tuple("" if one.get(name) is None else written(one[name]) for one in flat)
        if len(set(cells)) > 1 and name not in _UNCOMPARED:
            rows.append((name, cells))
    return tuple(rows)


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{key}": item for key, item in value.items()}
        else:
            found[name] = value
    return found


def _notes(runs: Sequence[Stored]) -> list[str]:
    """What keeps numbers from being comparable."""
    notes: list[str] = []
    if len({run.metrics["teacher"] for run in runs}) > 1:
        notes.append("These runs are of different networks.")
    policies = sorted({str(run.config.policy) for run in runs})
    if len(policies) > 1:
        notes.append(
            f"Layer policies differ ({', '.join(policies)}): numbers of different policies say"
            " nothing of methods."
        )
    protocols = sorted({run.config.protocol_told or "none" for run in runs})
    if len(protocols) > 1:
        notes.append(f"Protocols differ: {'; '.join(protocols)}.")
    measured = [_measured_on(run) for run in runs if reached(run.metrics)]
    if len(set(measured)) > 1:
        told = "; ".join(f"{count} of {data}" for data, count in dict.fromkeys(measured))
        notes.append(f"Accuracies are of different test images: {told}.")
    for name in _MACHINE:
        values = {str(run.record.get("environment", {}).get(name)) for run in runs}
        if len(values) > 1:
            notes.append(f"Times are of different machines: {name} {', '.join(sorted(values))}.")
            break
    for name in ("datafree", "torch", "onnxruntime"):
        found = {_version(run, name) for run in runs}
        if len(found) > 1:
            notes.append(f"Versions of {name} differ: {', '.join(sorted(found))}.")
    return notes


def _measured_on(run: Stored) -> tuple[str, int]:
    """The labelled images of a run, and how many there were."""
    last = run.evaluations[-1] if run.evaluations else {}
    return str(last.get("data", run.config.data)), int(run.metrics.get("test_images", 0))


def _version(run: Stored, name: str) -> str:
    return str(run.record.get("environment", {}).get("packages", {}).get(name))
