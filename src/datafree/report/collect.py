"""From a finished run to everything its page shows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from datafree.config import RunConfig
from datafree.config.fields import PANELS, describe, in_panels, option_name, panel_of, written
from datafree.images import device_batches
from datafree.losses import first_logits
from datafree.report.advice import Advice, advised
from datafree.report.command import call, changes, command
from datafree.report.frontier import FrontierPlot, frontier_plot
from datafree.report.headline import Headline, headline
from datafree.report.layers import Layers, layers_of
from datafree.report.pictures import Picture, pictures
from datafree.report.sets import Sets, sets_of
from datafree.report.source import Cited, Source
from datafree.tensors import device_of, release_memory

_VALUES = 64 * 3 * 32 * 32  # of the images whose activations are counted
_LEAST = 4


@dataclass(frozen=True)
class Setting:
    """One field of a configuration, for people.

    Attributes:
        option: of the command line.
        value: as written there.
        meaning: what it does.
        changed: whether it differs from its default.
    """

    option: str
    value: str
    meaning: str
    changed: bool


@dataclass(frozen=True)
class Report:
    """Everything a page shows; each part by itself is in the module of its class.

    Attributes:
        name: of the run's folder.
        headline: the verdict.
        advice: what to change.
        layers: layer by layer; None of a float student.
        pictures: of the synthetic images.
        sets: synthetic images beside noise and real ones; None where there are none.
        frontier: of mixed precision; None where bits were not chosen.
        settings: the whole configuration, by panel.
        command: that repeats the run; None where the network was in memory.
        call: the same in Python.
        methods: that were used.
        seconds: by stage.
        environment: machine and versions.
    """

    name: str
    headline: Headline
    advice: tuple[Advice, ...]
    layers: Layers | None
    pictures: tuple[Picture, ...]
    sets: Sets | None
    frontier: FrontierPlot | None
    settings: tuple[tuple[str, tuple[Setting, ...]], ...]
    command: str | None
    call: str
    methods: tuple[Cited, ...]
    seconds: Mapping[str, float]
    environment: Mapping[str, Any]


def collect(source: Source) -> Report:
    """Measure what the page of a run shows: a few passes of its networks over its images."""
    images = source.images
    layers = None
    if not source.config.float_student:
        few = images.subset(max(_LEAST, _VALUES // math.prod(images.spec.shape)))
        batches = list(device_batches(few, device_of(source.student))) if len(images) else []
        layers = layers_of(source.student, source.floats, batches, source.metrics)
    release_memory(source.teacher)
    sets = sets_of(source.teacher, images, source.real) if len(images) else None
    return Report(
        name=source.name,
        headline=headline(source),
        advice=() if layers is None else advised(source, layers),
        layers=layers,
        pictures=tuple(pictures(images, _logits(source, sets), source.class_names)),
        sets=sets,
        frontier=frontier_plot(source.frontier),
        settings=settings(source.asked),
        command=command(source.asked, source.name),
        call=call(source.asked),
        methods=source.methods,
        seconds=source.seconds,
        environment=source.environment,
    )


def _logits(source: Source, sets: Sets | None) -> Tensor | None:
    """(N, K) logits of the synthetic images; None of a network that says nothing of an image."""
    if sets is None or not source.spec.labelled:
        return None
    return first_logits(sets.outputs, source.spec.outputs)


def settings(config: RunConfig) -> tuple[tuple[str, tuple[Setting, ...]], ...]:
    """Every field of a configuration by panel, as the help of the command line has them."""
    changed = changes(config)
    found: dict[str, list[Setting]] = {panel: [] for panel in PANELS}
    for name in in_panels(RunConfig):
        field, value = describe(RunConfig, name), getattr(config, name)
        setting = Setting(
            option=option_name(name),
            value=field.default if value is None else written(value),
            meaning=field.meaning.replace("`", ""),
            changed=name in changed,
        )
        found[panel_of(RunConfig, name)].append(setting)
    return tuple((panel, tuple(rows)) for panel, rows in found.items() if rows)
