"""What to change: the next commands worth trying, and why."""

from __future__ import annotations

from dataclasses import dataclass

from datafree.config import RunConfig
from datafree.report.command import command
from datafree.report.layers import Layers
from datafree.report.source import Source

_CLIPPED = 0.01  # share of values outside a grid from which on its range is worth a look
_ENOUGH = 8  # bits beyond which a layer cannot go
_WEAK = 2  # layers that are proposed together
_UNDECIDED = 0.25  # share of the roundings from which on more steps are worth their time


@dataclass(frozen=True)
class Advice:
    """One thing to try.

    Attributes:
        text: what, and why.
        command: to carry it out; None where there is no command line, or nothing to carry out.
    """

    text: str
    command: str | None = None


def advised(source: Source, layers: Layers) -> tuple[Advice, ...]:
    """What to try next, the likeliest to help first."""
    asked, config = source.asked, source.config
    if config.float_student:
        return ()
    found = [
        *_unmeasured(source),
        *_weak_layers(asked, layers, source.name),
        *_rounding(source),
        *_ranges(asked, layers, source.name),
    ]
    return tuple(found)


def _unmeasured(source: Source) -> list[Advice]:
    metrics = source.metrics
    if metrics.get("verdict") or any(name in metrics for name in ("top1", "miou", "metric")):
        return []
    told = (
        "Nothing here says how right the student is on real images: give a few hundred labelled"
        " ones, if there are any."
    )
    return [Advice(told, f"datafree evaluate {source.name} --data test.npz")]


def _weak_layers(asked: RunConfig, layers: Layers, name: str) -> list[Advice]:
    """More bits for the weakest layers that have few."""
    few = [row for row in layers.weakest if row.weight.bits < _ENOUGH][:_WEAK]
    if not few or asked.mixed or asked.tuning is not None:
        return []
    named = " and ".join(row.path for row in few)
    share = sum(row.weights for row in few) / sum(row.weights for row in layers.rows)
    text = (
        f"Give {named} 8 bits: of all layers {'they have' if len(few) > 1 else 'it has'} most of"
        f" {layers.measure}. Together they hold {100 * share:.1f} % of the weights."
    )
    if len(few) == 1:
        text = text.replace("Together they hold", "It holds")
    taken = dict(asked.layer_bits) | {row.path: 8 for row in few}
    changed = asked.model_copy(update={"layer_bits": taken})
    return [Advice(text, command(changed, f"{name}-8bit"))]


def _rounding(source: Source) -> list[Advice]:
    asked, config, name = source.asked, source.config, source.name
    if config.tuning is not None:
        return []
    units = source.metrics.get("reconstruction") or ()
    rounded = sum(unit["rounded"] for unit in units)
    if rounded:
        share = sum(unit["undecided"] for unit in units) / rounded
        if share <= _UNDECIDED:
            return []
        text = f"{100 * share:.0f} % of the roundings are undecided: learn them for longer."
        longer = {**asked.reconstruction_options, "iterations": 5000}
        changed = asked.model_copy(update={"reconstruction_options": longer})
        return [Advice(text, command(changed, f"{name}-longer"))]
    if config.weights >= _ENOUGH or config.rounding is not None:
        return []
    text = (
        "Learn how weights are rounded, instead of to the nearest: below 8 bits this is what gains"
        " most. It takes minutes, and more images."
    )
    more = {} if asked.image_file is not None else {"images": max(asked.images, 256)}
    changed = asked.model_copy(update={"reconstruction": "genie_m", **more})
    return [Advice(text, command(changed, f"{name}-rounded"))]


def _ranges(asked: RunConfig, layers: Layers, name: str) -> list[Advice]:
    """Another calibrator where much is clipped."""
    clipped = [
        (found.clipped, path) for row in layers.rows for path, found in row.inputs
        if found.clipped > _CLIPPED
    ]  # fmt: skip
    if not clipped or asked.tuning is not None or "minmax" in str(asked.calibrator):
        return []
    share, path = max(clipped)
    text = (
        f"{len(set(clipped))} activation ranges clip more than {100 * _CLIPPED:.0f} % of their"
        f" values ({path}: {100 * share:.1f} %): compare with ranges that clip nothing."
    )
    changed = asked.model_copy(update={"calibrator": "minmax", "calibrator_options": {}})
    return [Advice(text, command(changed, f"{name}-minmax"))]
