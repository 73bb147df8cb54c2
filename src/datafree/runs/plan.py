"""What a run will do, settled and checked before its long stages begin."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx

from datafree.allocation.budget import describe_layers, resolve_budget
from datafree.calibrators.base import Calibrator, ImagelessRule, RangeRule
from datafree.config import InputSpec, Method, RunConfig, build
from datafree.corrections.prepare import prepare
from datafree.errors import ConfigError
from datafree.export.base import Exporter
from datafree.generators import load_generator
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers, weight_bits
from datafree.graph.untrained import require_statistics
from datafree.reconstruction.base import Reconstructor
from datafree.registry import load
from datafree.synthesis.base import Synthesizer
from datafree.training.base import Trainer


@dataclass(frozen=True)
class Plan:
    """The methods of a run.

    Attributes:
        rule: sets the activation ranges.
        reconstructor: learns the rounding, or None.
        trainer: fine-tunes the student, or None.
        synthesizer: makes the images; None where there are some, or no stage needs any.
    """

    rule: Calibrator | ImagelessRule
    reconstructor: Reconstructor | None
    trainer: Trainer | None
    synthesizer: Synthesizer | None

    @property
    def long_stages(self) -> tuple[Synthesizer | None, Reconstructor | None, Trainer | None]:
        """What takes most of the time."""
        return self.synthesizer, self.reconstructor, self.trainer


def make_plan(config: RunConfig, graph: fx.GraphModule, spec: InputSpec, *, given: bool) -> Plan:
    """Settle the methods of a run; all that `config` has wrong is said here.

    Args:
        config: the run.
        graph: the captured network.
        spec: its input.
        given: images are given.

    Raises:
        DatafreeError: an option, a budget, or a network that a method cannot take.
    """
    rule: Calibrator | ImagelessRule = make_method(config.calibration, "calibrators", RangeRule)
    trainer = _trainer(config, rule, graph)
    learned_from = trainer is None or trainer.from_images
    wanted = not given and learned_from and _needs_images(config, rule)
    synthesizer: Synthesizer = make_method(config.synthesis, "synthesis", Synthesizer)
    if wanted:
        synthesizer.check(graph)
    folded = fold_batch_norms(graph, branches=trainer is None or trainer.folds)
    weight_bits(folded, config.scheme)
    if isinstance(rule, ImagelessRule):
        require_statistics(graph, str(config.calibrator), "mse")
        # Takes a moment, and tells whether all ranges are known.
        prepared, statistics = prepare(graph, config)
        student = insert_quantizers(prepared, config.scheme, spec)
        rule.set_ranges(student, prepared, statistics, spec)
    if config.mixed:
        layers = describe_layers(folded, config.scheme, spec.shape)
        resolve_budget(config, layers)
    reconstructor: Reconstructor | None = None
    if config.rounding is not None:
        rounding: Reconstructor = make_method(config.rounding, "reconstruction", Reconstructor)
        rounding.check(folded)
        reconstructor = rounding
    return Plan(rule, reconstructor, trainer, synthesizer if wanted else None)


def _trainer(config: RunConfig, rule: RangeRule, graph: fx.GraphModule) -> Trainer | None:
    if config.tuning is None:
        return None
    trainer: Trainer = make_method(config.tuning, "training", Trainer)
    if not isinstance(rule, Calibrator):
        raise ConfigError(
            f"{config.calibrator} looks at no images, and {trainer.name} has some to set its"
            " ranges on: choose another calibrator"
        )
    _check_source(config, trainer)
    trainer.check(graph)
    changed = config.equalize or config.absorb_biases or config.split_outliers or config.bias_rule
    if changed and (not trainer.folds or config.student is not None):
        raise ConfigError(
            "equalize, absorb_biases, split_outliers and bias_correction change the folded teacher"
            " or its student, and this student is not made from it: leave them out"
        )
    if config.rounding is not None:
        trainer.check_rounding()
    if config.generator is not None:
        load_generator(config.generator)
    return trainer


def _check_source(config: RunConfig, trainer: Trainer) -> None:
    """Refuse images that a trainer would not learn from, and a generator that it would not ask."""
    if trainer.from_images and config.generator is not None:
        raise ConfigError(
            f"{trainer.name} learns from images, not beside a generator: leave generator out, or"
            " let it make them (images)"
        )
    if not trainer.from_images and config.photos is not None:
        raise ConfigError(f"{trainer.name} dreams its own images: leave photos out")
    if not trainer.from_images and config.method == "generator":
        raise ConfigError(
            f"{trainer.name} dreams its own images: give the file as generator, not as images"
        )


def make_method(chosen: Method, package: str, base: type[Any]) -> Any:
    """The method `chosen` of a method package, with its options checked.

    Raises:
        UnknownNameError: no such method.
        ConfigError: an option it does not have, or out of range.
    """
    cls = load(f"datafree.{package}", chosen.name, base)
    return build(cls, chosen.options, f"option of {chosen.name}")


def exporter_for(
    path: Path, format: str | None = None, options: Mapping[str, Any] | None = None
) -> Exporter:
    """The export format for a file.

    Args:
        path: to be written.
        format: its name; None is the suffix of `path`.
        options: its hyper-parameters.

    Raises:
        UnknownNameError: no such format; the nearest names are offered.
        ConfigError: an option it does not have, or out of range.
    """
    chosen = Method(name=format or path.suffix.removeprefix("."), options=dict(options or {}))
    return make_method(chosen, "export", Exporter)


def resolve_device(name: str) -> torch.device:
    """The device called `name`; `auto` is CUDA where there is one.

    Raises:
        ConfigError: no such device on this machine.
    """
    if name == "auto":
        # Of several processes on one machine each has a GPU of its own.
        own = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        return torch.device(own if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device {name!r}: choose auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"no device {name} on this machine: choose cpu or auto")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"unknown device {name!r}: choose auto, cpu, cuda or cuda:N")
    return device


def _needs_images(config: RunConfig, rule: RangeRule) -> bool:
    empirical = config.bias_rule == "empirical"
    learned = config.rounding is not None or config.mixed
    return isinstance(rule, Calibrator) or learned or empirical
