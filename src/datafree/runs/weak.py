"""What a user must not miss in what was measured: layers that are noise, students that guess."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

FEW_DECIBELS = 5.0
"""Of signal over noise: below, a third of a layer's output is noise or more."""
_NAMED = 3


def weak_points(metrics: Mapping[str, Any], classes: int | None = None) -> list[str]:
    """One sentence for each thing that is wrong with a student; none where all is well.

    Args:
        metrics: of a run, as far as they were measured.
        classes: K of a network of classes, where labelled images count.
    """
    return [*_noisy(metrics), *_guesses(metrics, classes)]


def lossy(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Signal over noise in dB of the layers that lose anything, of a record or of a result.

    Records have no numbers for infinities: strings now, nulls before.
    """
    told = {path: db for path, db in (metrics.get("sqnr_db") or {}).items() if db is not None}
    return {path: float(db) for path, db in told.items() if math.isfinite(float(db))}


def _noisy(metrics: Mapping[str, Any]) -> list[str]:
    worst = sorted((db, path) for path, db in lossy(metrics).items() if db < FEW_DECIBELS)
    if not worst:
        return []
    named = ", ".join(f"{path} ({db:.1f} dB)" for db, path in worst[:_NAMED])
    more = f" and {len(worst) - _NAMED} more" if len(worst) > _NAMED else ""
    first, layers = worst[0][1], len(metrics["sqnr_db"])
    return [
        f"{len(worst)} of {layers} layers have less than {FEW_DECIBELS:.0f} dB of signal over"
        f" noise: {named}{more}; give them more bits (--layer-bits {first}=8), or leave them in"
        f" float (--keep-float {first})"
    ]


def _guesses(metrics: Mapping[str, Any], classes: int | None) -> list[str]:
    held = metrics.get("held_out", {})
    told: list[str] = []
    if "chance" in held and _at_chance(held["agreement"], held["chance"], held["images"]):
        told.append(
            f"the student is at chance: it agrees with its teacher on {held['agreement']:.1f} % of"
            f" the held-out images, where answers drawn at random would on {held['chance']:.1f} %"
        )
    found = metrics.get("top1")
    if found is not None and classes is not None and classes > 1:
        count, chance = metrics["test_images"], 100 / classes
        if _at_chance(found["student"], chance, count) and not _at_chance(
            found["teacher"], chance, count
        ):
            told.append(
                f"the student is at chance: {found['student']:.1f} % of {count} labelled images are"
                f" right, and drawing one of {classes} classes gives {chance:.1f} %"
            )
    return told


def _at_chance(share: float, chance: float, images: int) -> bool:
    """Whether `share` is at most two standard errors above `chance`, both in percent."""
    error = math.sqrt(chance * max(100 - chance, 0.0) / max(images, 1))
    return share <= chance + 2 * error
