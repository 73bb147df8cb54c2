"""A finished run as a page of text: what it is, what was lost, what lies where."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datafree.config import Method, RunConfig
from datafree.progress import in_words
from datafree.runs.folder import CONFIG
from datafree.runs.stored import REACHED, Stored
from datafree.runs.weak import lossy

LAYERS = 10
"""Layers that a page names."""
NAMES = {"top1": ("top-1", " %"), "miou": ("mean IoU", " %"), "metric": ("measure", "")}
"""What networks reach on labelled images: its name and unit."""
_WHAT = {
    "config.yaml": "all that was chosen",
    "metrics.json": "what was measured, hashes, seconds, versions",
    "evaluation.json": "what datafree evaluate measured later",
    "benchmark.json": "what datafree benchmark measured",
    "images.safetensors": "synthetic images, normalised",
    "grid.png": "the images as people see them",
    "student.onnx": "the student with integer weights",
    "student.pt2": "the student as a torch program",
    "student.safetensors": "its parameters and ranges",
    "student.pte": "the student for ExecuTorch",
    "student.tflite": "the student for LiteRT",
    "teacher.pt2": "the float network, so that the folder is enough",
    "float.onnx": "the float network as ONNX",
    "generator.safetensors": "the generator at its end",
    "warm_generator.safetensors": "the generator before the student was quantized",
    "allocation.json": "sensitivities and the bits they led to",
    "frontier.png": "the frontier of bits and sensitivities",
    "report.html": "all of this with pictures, for a browser",
}
Row = tuple[str, str]


@dataclass(frozen=True)
class Section:
    """Rows of two cells under a title."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Page:
    """What there is to tell of a run.

    Attributes:
        title: network, bits and folder.
        sections: those that have something to say.
        command: repeats the run.
    """

    title: str
    sections: tuple[Section, ...]
    command: str


def page_of(stored: Stored) -> Page:
    """The page of a run; what its record does not have is left out."""
    config, metrics = stored.config, stored.metrics
    sections = (
        Section("what it is", tuple(_what(config, metrics))),
        Section("how good", tuple(_how_good(stored))),
        Section("how small", tuple(_how_small(metrics))),
        Section("how fast", tuple(_how_fast(metrics.get("runtime", {})))),
        Section("weakest layers", tuple(_weakest(metrics))),
        Section("where the time went", tuple(_time(stored.record))),
        Section("files", tuple(_files(stored.folder))),
    )
    return Page(
        f"{config.model} {label_of(config)} in {stored.folder}",
        tuple(section for section in sections if section.rows),
        command_of(stored),
    )


def label_of(config: RunConfig) -> str:
    """The bits of a run in short."""
    if config.float_student:
        return "float student"
    return f"{config.label}, mixed" if config.mixed else config.label


def command_of(stored: Stored) -> str:
    """The command that repeats the run in another folder."""
    place = shlex.quote((stored.folder / CONFIG).as_posix())
    return f"datafree quantize --config {place} --output again"


def reached(metrics: Mapping[str, Any]) -> dict[str, tuple[str, dict[str, float], str]]:
    """What networks reach on labelled images: by measure its name, values by network, unit."""
    return {
        key: (NAMES[key][0], dict(metrics[key]), NAMES[key][1]) for key in REACHED if key in metrics
    }


def verdict_of(metrics: Mapping[str, Any]) -> str:
    """The label-free verdict of a run in a line; empty where there is none."""
    verdict = metrics.get("verdict")
    return "" if verdict is None else f"{verdict['word']}, {verdict['why']}"


def compared_without_labels(held: Mapping[str, Any]) -> str:
    """How teacher and student differ on held-out images."""
    told: list[str] = []
    if held.get("agreement") is not None:
        told.append(f"{held['agreement']:.1f} % same prediction")
    if held.get("kl") is not None:
        told.append(f"KL {held['kl']:.4f}")
    if held.get("error") is not None:
        told.append(f"numbers off by {100 * held['error']:.2g} % of their deviation")
    return ", ".join(told)


def _what(config: RunConfig, metrics: Mapping[str, Any]) -> list[Row]:
    given = metrics.get("input", {})
    taken = " x ".join(map(str, given.get("shape", ())))
    task = str(metrics.get("task", "classes"))
    classes = f"{given['classes']} classes" if task == "classes" and given else task
    corrections = [
        name for name, on in (
            ("equalization", config.equalize), ("bias absorption", config.absorb_biases),
            ("outlier splitting", config.split_outliers),
            (f"{config.bias_rule} bias correction", config.bias_rule),
        ) if on
    ]  # fmt: skip
    chosen = [config.synthesis, config.calibration, config.rounding, config.tuning]
    kinds = ("images", "ranges", "rounding", "training")
    methods = [f"{k} {_method(m)}" for k, m in zip(kinds, chosen, strict=True) if m is not None]
    rows = [
        ("network", ", ".join(part for part in (config.model, taken, classes) if part)),
        ("student", "" if config.student is None else str(config.student)),
        ("numbers", f"{label_of(config)}, {config.rules_told}, target {config.target}"),
        ("methods", ", ".join([*methods, *corrections])),
        ("seed", str(config.seed)),
        *(("note", str(note)) for note in metrics.get("notes", ())),
    ]
    return [row for row in rows if row[1]]


def _how_good(stored: Stored) -> list[Row]:
    metrics = stored.metrics
    rows: list[Row] = [("verdict", verdict_of(metrics))] if verdict_of(metrics) else []
    for name, values, unit in reached(metrics).values():
        told = ", ".join(f"{network} {value:.2f}{unit}" for network, value in values.items())
        where = stored.evaluations[-1].get("data") if stored.evaluations else stored.config.data
        on = f" on {metrics['test_images']} images" if "test_images" in metrics else ""
        rows.append((name, f"{told}{on} of {where}" if where else told + on))
    if "held_out" in metrics:
        held = metrics["held_out"]
        images = f" on {held['images']} images of another seed" if "images" in held else ""
        rows.append(("unlabelled", compared_without_labels(held) + images))
    return rows


def _how_small(metrics: Mapping[str, Any]) -> list[Row]:
    rows: list[Row] = []
    for suffix in ("onnx", "pt2", "pte", "tflite"):
        told = metrics.get(suffix, {})
        if "line" in told:
            rows.append((f"student.{suffix}", str(told["line"])))
            rows += [("", str(note)) for note in told.get("notes", ())]
    return rows


def _how_fast(facts: Mapping[str, Any]) -> list[Row]:
    if "error" in facts:
        return [("runtime", str(facts["error"]))]
    rows: list[Row] = []
    if "integer" in facts:
        told = f"{facts['integer']} of {facts['total']} layers in {facts['runtime']}"
        rows.append(("integer kernels", told))
    for row in facts.get("latency_ms", ()):
        threads = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
        told = f"float {row['float']:.3g} ms, student {row['student']:.3g} ms"
        told += f", {row['float'] / row['student']:.2f} times as fast"
        rows.append((f"{threads}, batch {row['batch']}", told))
    return rows


def _weakest(metrics: Mapping[str, Any]) -> list[Row]:
    """Layers that lose most, one by one; by their noise where that was not measured."""
    if apart := metrics.get("isolation", {}).get("by_layer"):
        return _one_by_one(apart, metrics["isolation"])
    noise = lossy(metrics)
    worst = sorted(noise.items(), key=lambda item: item[1])[:LAYERS]
    bits = metrics.get("allocation", {}).get("layer_bits", {})
    rows = [
        (name, f"{db:.1f} dB" + (f", {bits[name]} bits" if name in bits else ""))
        for name, db in worst
    ]
    if rows and len(noise) > LAYERS:
        rows.append(("", f"signal to noise; {len(noise) - LAYERS} more are better"))
    return rows


def _one_by_one(apart: Mapping[str, Mapping[str, float]], found: Mapping[str, Any]) -> list[Row]:
    """Layers by what they change by themselves and by what goes with them."""
    worst = sorted(apart, key=lambda name: apart[name]["without"] - apart[name]["alone"])[:LAYERS]
    rows = [
        (
            name,
            f"divergence {apart[name]['alone']:.2g} by itself, {apart[name]['without']:.2g} instead"
            f" of {found['total']:.2g} without it",
        )
        for name in worst
    ]
    return [*rows, ("", f"try {found['proposal']}")] if found.get("proposal") else rows


def _time(record: Mapping[str, Any]) -> list[Row]:
    seconds: Mapping[str, float] = record.get("seconds", {})
    if not seconds:
        return []
    machine = record.get("environment", {})
    packages = machine.get("packages", {})
    threads = machine.get("threads", "?")
    where = f"{machine.get('processor', '?')}, {threads} thread{'' if threads == 1 else 's'}"
    told = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
    versions = ", ".join(f"{name} {packages.get(name)}" for name in ("datafree", "torch"))
    return [
        ("in all", in_words(sum(seconds.values()))),
        ("stages", told),
        ("machine", where),
        ("versions", versions),
    ]


def _files(folder: Path) -> list[Row]:
    rows: list[Row] = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            size = size_in_words(path.stat().st_size)
            rows.append((path.name, ", ".join(filter(None, (size, _WHAT.get(path.name))))))
    return rows


def size_in_words(size: int) -> str:
    """Bytes as people say them, 1 kB being 1000."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 1000)):
        if size >= factor:
            return f"{size / factor:.{1 if size < 10 * factor else 0}f} {unit}"
    return f"{size} bytes"


def _method(method: Method) -> str:
    options: Sequence[str] = [f"{name}={value}" for name, value in method.options.items()]
    return f"{method.name} ({', '.join(options)})" if options else method.name
