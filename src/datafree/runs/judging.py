"""The verdict of a run: on held-out images, or on labelled ones where there are some."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from datafree.config import InputSpec, RunConfig
from datafree.errors import ConfigError
from datafree.evaluate import Predictor, compared, outputs_of
from datafree.images import SyntheticSet, device_batches
from datafree.losses import class_rows
from datafree.progress import Progress
from datafree.runs.plan import resolve_device
from datafree.verdict.estimate import ALWAYS, Verdict, measured
from datafree.verdict.held_out import held_out_images
from datafree.verdict.judge import judge

HELD_OUT_SEED = 1_000_003
"""Added to the seed of held-out images; neighbouring seeds share nothing."""
_LEARNED_FROM = 4
"""Bits of weights from which on learned rounding is not tried first."""


def holds_out(config: RunConfig) -> bool:
    """Whether a run makes images that none of its stages sees: it has none with labels."""
    return config.data is None and config.holdout > 0


def held_out_of(
    graph: fx.GraphModule, spec: InputSpec, config: RunConfig, progress: Progress
) -> SyntheticSet:
    """The images a run compares teacher and student on, made from `graph` with its batch norms."""
    seed = config.seed + HELD_OUT_SEED
    return held_out_images(graph, spec, config.holdout, seed=seed, progress=progress)


def judged(
    images: SyntheticSet,
    teacher: Predictor,
    student: Predictor,
    config: RunConfig,
    sqnr_db: Mapping[str, float],
    size: int | None = None,
) -> dict[str, Any]:
    """Compare teacher and student on held-out images; ``held_out`` and ``verdict``, JSON values.

    A student that is another network than its teacher has no verdict: estimates were fitted on
    quantized copies.

    Args:
        images: held out, see `held_out_of`.
        teacher: what the student should answer.
        student: to be judged.
        config: of the run.
        sqnr_db: by quantized layer; may be empty.
        size: images that pass together; None is as `config` says.
    """
    spec, device = images.spec, resolve_device(config.device)
    batches = device_batches(images, device, size or config.images_per_batch)
    wanted, found = outputs_of(teacher, student, batches)
    comparison = asdict(compared(wanted, found, spec.outputs))
    held_out = {name: value for name, value in comparison.items() if value is not None}
    held_out |= _chance(wanted, found, spec)
    if config.student is not None:
        return {"held_out": held_out}
    worst = min((db for db in sqnr_db.values() if math.isfinite(db)), default=None)
    verdict, features = judge(wanted, found, spec.outputs, worst)
    if features is not None:
        held_out["features"] = features.model_dump(mode="json")
    return {"held_out": held_out, "verdict": verdict.model_dump(mode="json")}


def _chance(wanted: Tensor, found: Tensor, spec: InputSpec) -> dict[str, float]:
    """``chance``: percent of images on which both would agree if neither looked at them.

    ``sum_k p_k q_k`` of how often they give each answer. Nothing of networks without classes, nor
    where the teacher all but always says the same.
    """
    both = [class_rows(answers, spec.outputs)[:1] for answers in (wanted, found)]
    shares = [
        torch.bincount(rows.argmax(1), minlength=rows.shape[1]).double() / len(rows)
        for one in both
        for rows in one
    ]
    if not shares:
        return {}
    if float(shares[0].max()) >= ALWAYS:
        return {}
    return {"chance": 100 * float((shares[0] * shares[1]).sum())}


def measured_verdict(accuracy: Mapping[str, Any]) -> dict[str, Any]:
    """``verdict`` of what was measured on labelled images; nothing of a measure of one's own."""
    for name in ("top1", "miou"):
        if name in accuracy:
            told = accuracy[name]
            found = measured(told["teacher"], told["student"], accuracy["test_images"])
            return {"verdict": found.model_dump(mode="json")}
    return {}


def verdict_in(metrics: Mapping[str, Any]) -> Verdict | None:
    """The verdict among the metrics of a run."""
    told = metrics.get("verdict")
    return None if told is None else Verdict.model_validate(told)


def check_verdict(config: RunConfig, *, own_measure: bool) -> None:
    """Refuse `fail_below` where there will be no verdict.

    Args:
        config: of the run.
        own_measure: whether it has a measure of the user's own.

    Raises:
        ConfigError: as said.
    """
    if config.fail_below is None:
        return
    why = None
    if config.student is not None and config.data is None:
        why = "students that are another network are only judged on labelled images: give data"
    elif config.data is None and not config.holdout:
        why = "nothing is compared: give data, or leave holdout as it is"
    elif config.data is not None and own_measure:
        why = "a measure of your own has no scale that is known: leave it out"
    if why is not None:
        raise ConfigError(f"fail_below goes with a verdict, and {why}")


def next_command(config: RunConfig, run: Path) -> str:
    """The one command to try after a run in folder `run` that ended poor.

    Learned rounding comes first where weights have few bits, then more bits for activations, then
    for weights.
    """
    settings = f"datafree quantize --config {run / 'config.yaml'}"
    plain = config.rounding is None and config.tuning is None
    weights, activations = config.scheme.weights, config.scheme.activations
    if config.student is not None:
        return f"datafree evaluate {run} --data FILE"
    if plain and weights <= _LEARNED_FROM:
        return f"{settings} --recipe balanced --output {run}-balanced"
    if activations < 8 or weights < 8:
        wider = f"W{weights}A8" if activations < 8 else "W8A8"
        return f"{settings} --bits {wider} --output {run}-{wider}"
    if plain:
        return f"{settings} --recipe balanced --output {run}-balanced"
    return f"datafree evaluate {run} --data FILE"
