"""What a report is made of: a finished run, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from datafree.config import InputSpec, RunConfig
from datafree.images import SyntheticSet


@dataclass(frozen=True)
class Cited:
    """A method that a run used.

    Attributes:
        name: as it is chosen.
        kind: such as `image method`.
        what: its first sentence.
        citation: where it comes from; empty if it does not say.
    """

    name: str
    kind: str
    what: str
    citation: str


@dataclass(frozen=True)
class Source:
    """A finished run.

    Attributes:
        name: of its folder.
        asked: its configuration as it was asked for.
        config: the same with the methods and bits that were taken.
        spec: input of both networks.
        teacher: canonical graph with its batch norms.
        student: the quantized graph, of one output tensor as the teacher.
        images: the synthetic ones; may be none.
        metrics: what was measured, ``runtime`` among it; sections live with what is not there.
        seconds: by stage.
        floats: weights of the quantized layers as they were before, by path; a layer that is
            missing keeps its own.
        real: real images to compare with, or None.
        frontier: what `allocation.json` holds, or None.
        methods: that were used.
        environment: machine and versions.
        class_names: by class, or None.
    """

    name: str
    asked: RunConfig
    config: RunConfig
    spec: InputSpec
    teacher: fx.GraphModule
    student: fx.GraphModule
    images: SyntheticSet
    metrics: Mapping[str, Any]
    seconds: Mapping[str, float]
    floats: Mapping[str, Tensor] = field(default_factory=dict)
    real: SyntheticSet | None = None
    frontier: Mapping[str, Any] | None = None
    methods: tuple[Cited, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    class_names: list[str] | None = None
