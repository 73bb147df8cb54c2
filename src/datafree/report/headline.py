"""The verdict of a run: what it is, whether it can be used, how small, how fast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from datafree.report.source import Source

MEASURES = {"top1": ("top-1", " %"), "miou": ("mean IoU", " %"), "metric": ("measure", "")}
"""What networks can reach on labelled images: its name and unit."""


@dataclass(frozen=True)
class Tile:
    """One number of the verdict.

    Attributes:
        label: what it is.
        value: as people read it.
        note: what it is compared with, or why it is not there.
    """

    label: str
    value: str
    note: str = ""

    @property
    def empty(self) -> bool:
        """Whether there is no number."""
        return self.value.startswith("not ")


@dataclass(frozen=True)
class Headline:
    """The top of a report.

    Attributes:
        title: network and scheme.
        word: `good`, `check` or `poor`; None where nobody judged.
        sentence: the verdict in one sentence.
        tiles: numbers.
        notes: what the run said of the network, the file and the runtime.
    """

    title: str
    word: str | None
    sentence: str
    tiles: tuple[Tile, ...]
    notes: tuple[str, ...]


def headline(source: Source) -> Headline:
    """The verdict of a run, from what its metrics hold."""
    metrics, config = source.metrics, source.config
    verdict = _mapping(metrics.get("verdict"))
    word = str(verdict["word"]) if verdict.get("word") else None
    scheme = "float student" if config.float_student else config.scheme.label
    why = verdict.get("why")
    sentence = f"{str(why)[:1].upper()}{str(why)[1:]}." if why else _without_verdict(metrics)
    tiles = (
        _estimated(verdict),
        _measured(metrics),
        _size(metrics),
        _speed(_mapping(metrics.get("runtime"))),
        _likeness(metrics),
        _time(source.seconds),
    )
    runtime = _mapping(metrics.get("runtime"))
    notes = (*metrics.get("notes", ()), *_file_notes(metrics), *runtime.get("notes", ()))
    network = PurePath(config.model).name or config.model
    told = f", protocol {config.protocol_told}" if config.protocol_told else ""
    return Headline(f"{network}, {scheme}{told}", word, sentence, tiles, notes)


def _without_verdict(metrics: Mapping[str, Any]) -> str:
    """What can be said without an estimate: what was measured, or that it was not."""
    for name, (title, unit) in MEASURES.items():
        if name in metrics:
            student = metrics[name].get("student")
            teacher = metrics[name].get("teacher")
            if student is not None and teacher is not None:
                return (
                    f"On {metrics['test_images']} labelled images the student reaches"
                    f" {student:.2f}{unit} ({title}), the float network {teacher:.2f}{unit}."
                )
    held = _mapping(metrics.get("held_out"))
    if "agreement" in held:
        return (
            f"This run has no estimate of the loss. On {held['images']} synthetic images student"
            f" and float network predict the same {held['agreement']:.0f} % of the time, which"
            " does not tell how right the student is on real ones."
        )
    return "This run measured nothing that tells whether the student can be used."


def _estimated(verdict: Mapping[str, Any]) -> Tile:
    label = "Estimated loss"
    if verdict.get("measured"):
        return Tile(label, "not estimated", "it was measured on labelled images")
    if verdict.get("loss") is None:
        return Tile(label, "not estimated", "the run has no verdict")
    low, high = verdict.get("low"), verdict.get("high")
    unit = verdict.get("unit", "points")
    sure = "" if low is None or high is None else f"between {low:.1f} and {high:.1f} {unit}"
    return Tile(label, f"{verdict['loss']:.1f} {unit}", sure)


def _measured(metrics: Mapping[str, Any]) -> Tile:
    label = "Measured loss"
    for name, (title, unit) in MEASURES.items():
        found = _mapping(metrics.get(name))
        if "teacher" in found and "student" in found:
            loss = found["teacher"] - found["student"]
            value = f"{loss:.2f} points" if unit else f"{loss:.4g}"
            told = f"{title} {found['teacher']:.2f} to {found['student']:.2f}{unit}"
            return Tile(label, value, f"{told}, {metrics['test_images']} images")
    return Tile(label, "not measured", "give labelled images as --data")


def _size(metrics: Mapping[str, Any]) -> Tile:
    file = _mapping(metrics.get("onnx"))
    if not file.get("float_weight_bytes"):
        return Tile("Size of the weights", "not known", "the run exported no file")
    share = file["weight_bytes"] / file["float_weight_bytes"]
    note = f"{100 * share:.1f} % of float ({_bytes(file['float_weight_bytes'])})"
    return Tile("Size of the weights", _bytes(file["weight_bytes"]), note)


def _speed(runtime: Mapping[str, Any]) -> Tile:
    label = "Time for one image"
    if "error" in runtime:
        return Tile(label, "not measured", str(runtime["error"]))
    rows = [row for row in runtime.get("latency_ms", ()) if {"float", "student"} <= row.keys()]
    if not rows:
        told = "no runtime ran it"
        if "integer" in runtime:
            told = f"{runtime['integer']} of {runtime['total']} layers have integer kernels"
        return Tile(label, "not measured", told)
    row = min(rows, key=lambda one: (one["batch"], one["threads"]))
    ratio = row["float"] / row["student"]
    compared = f"{ratio:.2f} times as fast" if ratio >= 1 else f"{1 / ratio:.2f} times as slow"
    threads = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
    each = row["student"] / row["batch"]
    note = f"{compared} as float; {runtime['runtime']}, {threads}"
    return Tile(label, f"{each:.3g} ms", note)


def _likeness(metrics: Mapping[str, Any]) -> Tile:
    held = _mapping(metrics.get("held_out"))
    label, note = "Same prediction", f"as float, on {held.get('images', 0)} synthetic images"
    if "agreement" in held:
        return Tile(label, f"{held['agreement']:.1f} %", note)
    if "error" in held:
        return Tile("Error", f"{100 * held['error']:.2g} %", f"of the deviation, {note}")
    return Tile(label, "not measured", "no images were held out")


def _time(seconds: Mapping[str, float]) -> Tile:
    total = sum(seconds.values())
    if not seconds:
        return Tile("Time of the run", "not known")
    longest = max(seconds, key=lambda name: seconds[name])
    return Tile("Time of the run", duration(total), f"{longest} {duration(seconds[longest])}")


def _file_notes(metrics: Mapping[str, Any]) -> list[str]:
    return [str(note) for note in _mapping(metrics.get("onnx")).get("notes", ())]


def duration(seconds: float) -> str:
    """Seconds as people say them: 4.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _bytes(count: float) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def _mapping(value: Any) -> Mapping[str, Any]:
    """What metrics hold under a name; empty where it is something else."""
    return value if isinstance(value, Mapping) else {}
