"""What to change: the next commands worth trying, and why."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from datafree.report.command import command
from datafree.report.headline import MEASURES
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
    if source.config.float_student:
        return ()
    found = [_labels(source), _weak_layers(source, layers), _rounding(source)]
    found.append(_ranges(source, layers))
    return tuple(one for one in found if one is not None)


def _labels(source: Source) -> Advice | None:
    metrics = source.metrics
    if metrics.get("verdict") or any(name in metrics for name in MEASURES):
        return None
    told = (
        "Nothing here says how right the student is on real images: measure it on a few hundred"
        " labelled ones, if there are any."
    )
    return Advice(told, f"datafree evaluate {shlex.quote(source.name)} --data test.npz")


def _weak_layers(source: Source, layers: Layers) -> Advice | None:
    """More bits for the weakest layers that have few."""
    few = [row for row in layers.weakest if row.weight.bits < _ENOUGH][:_WEAK]
    if not few or source.asked.mixed or source.asked.tuning is not None:
        return None
    named = " and ".join(row.path for row in few)
    share = sum(row.weights for row in few) / sum(row.weights for row in layers.rows)
    are = "they are the weakest layers and hold" if len(few) > 1 else "it is the weakest and holds"
    # Options of layers are given whole, so that those of the run stand here again.
    bits = {**source.asked.layer_bits, **{row.path: _ENOUGH for row in few}}
    options = [word for path, width in bits.items() for word in ("--layer-bits", f"{path}={width}")]
    text = f"Give {named} 8 bits: {are} {100 * share:.1f} % of the weights."
    return Advice(text, _again(source, "8bit", *options))


def _rounding(source: Source) -> Advice | None:
    """Learned rounding, or more steps of it."""
    asked, config = source.asked, source.config
    if config.tuning is not None:
        return None
    units = source.metrics.get("reconstruction") or ()
    rounded = sum(unit["rounded"] for unit in units)
    if rounded:
        share = sum(unit["undecided"] for unit in units) / rounded
        if share <= _UNDECIDED:
            return None
        text = f"{100 * share:.0f} % of the roundings are undecided: learn them for longer."
        longer = ("--reconstruction-option", "iterations=5000")
        return Advice(text, _again(source, "longer", *longer))
    if config.weights >= _ENOUGH or config.rounding is not None:
        return None
    text = (
        "Learn how weights are rounded, instead of to the nearest: below 8 bits this is what gains"
        " most. It takes minutes, and more images."
    )
    more = () if asked.image_file is not None else ("--images", str(max(asked.images, 256)))
    return Advice(text, _again(source, "rounded", "--reconstruction", "genie_m", *more))


def _ranges(source: Source, layers: Layers) -> Advice | None:
    """Another calibrator where much is clipped."""
    asked = source.asked
    clipped = {
        name: found.clipped for row in layers.rows for name, found in row.inputs
        if found.clipped > _CLIPPED
    }  # fmt: skip
    if not clipped or asked.tuning is not None or asked.calibrator == "minmax":
        return None
    worst = max(clipped, key=lambda name: clipped[name])
    text = (
        f"{len(clipped)} activation ranges clip more than {100 * _CLIPPED:.0f} % of their values"
        f" (at most {100 * clipped[worst]:.1f} %): compare with ranges that clip nothing."
    )
    return Advice(text, _again(source, "minmax", "--calibrator", "minmax"))


def _again(source: Source, suffix: str, *options: str) -> str | None:
    """The run once more with other options; None where no command line can name its network."""
    if command(source.asked, source.name) is None or source.asked.student is not None:
        return None
    words = ["datafree", "quantize", "--config", f"{source.name}/config.yaml"]
    return shlex.join([*words, *options, "--output", f"{source.name}-{suffix}"])
