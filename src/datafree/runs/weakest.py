"""Which layer a student loses most by, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import fx

from datafree.allocation.isolation import Isolation, isolation
from datafree.config import RunConfig
from datafree.config.widths import FLOAT
from datafree.graph.widths import activation_widths
from datafree.images import SyntheticSet
from datafree.progress import Progress
from datafree.quant.modules import QUANTIZED

_SHARE = 0.05  # of the time a run took so far, for layers one by one
_LEAST_SECONDS = 20.0
_WORTH = 0.01  # divergence of a student, in nats, below which nothing is proposed
_BLAME = 0.05  # of it, which one layer has to be to blame for
_WIDE = 8


def weakest_layer(
    teacher: fx.GraphModule,
    student: fx.GraphModule,
    images: SyntheticSet,
    config: RunConfig,
    seconds: float,
    progress: Progress,
) -> dict[str, Any]:
    """`datafree.allocation.isolation` of a run's student as JSON values, with what it proposes.

    Args:
        teacher: float graph with the layers of `student`.
        student: settled.
        images: held out, or those it was calibrated on.
        config: of the run.
        seconds: that the run took so far; a twentieth of it may be spent, at least twenty seconds.
        progress: shown meanwhile.

    Returns:
        ``total``, ``images``, ``layers``, ``measured``, ``weakest``, ``by_layer`` with ``alone``
        and ``without``, and where there is something to propose ``proposal``, options of the
        command line.
    """
    found = isolation(
        teacher, student, images.images, trained=config.tuning is not None,
        seconds=max(_LEAST_SECONDS, _SHARE * seconds), progress=progress,
    )  # fmt: skip
    told: dict[str, Any] = {
        "images": found.images, "layers": found.layers, "measured": len(found.shares),
        "total": found.total, "weakest": found.weakest,
        "by_layer": {path: asdict(share) for path, share in found.shares.items()},
    }  # fmt: skip
    proposed = proposal(found, student, config)
    return told | ({} if proposed is None else {"proposal": proposed})


def proposal(found: Isolation, student: fx.GraphModule, config: RunConfig) -> str | None:
    """The options that give the weakest layer 8 bits, or leave it in float where it has them.

    None where the student is near enough to its teacher, or no single layer is to blame.

    Args:
        found: of `student`.
        student: quantized.
        config: of the run; its target has a say in the widths.
    """
    path = found.weakest
    if found.total < _WORTH or found.blame(path) < _BLAME * found.total:
        return None
    layer, rules = student.get_submodule(path), config.scheme.rules
    assert isinstance(layer, QUANTIZED)  # noqa: S101 - only these are measured
    weights, inputs = layer.weight_quantizer.grid.bits, activation_widths(student)[path]
    narrow = bool(inputs) and min(inputs) < _WIDE and _WIDE in rules.activation_widths
    if config.scheme.activations == FLOAT:
        narrow = False
    if (weights < _WIDE or narrow) and _WIDE in rules.weight_widths:
        return f"--layer-bits {path}={f'W{_WIDE}A{_WIDE}' if narrow else _WIDE}"
    return f"--keep-float {path}"
