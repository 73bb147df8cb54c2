"""Names that options had before, so that programs written for them keep running."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Collection, Mapping
from typing import Any

RENAMED = {
    "weight_symmetric": "symmetric_weights",
    "activation_symmetric": "symmetric_activations",
    "max_seconds": "max_time",
    "count": "images",
    "options": "training_options",
}


_ALIKE = 0.75  # iterations is no misspelled excite_options, and sede is seed


def renamed(given: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Keywords under today's names; those that already have them are left as they are.

    ``weights=4, activations=8`` becomes ``bits="W4A8"``; hyper-parameters of an image method among
    options of `synthesize` become its `method_options`. ``weight_symmetric=True``, which was told
    to be for TensorRT, chooses that target. A `FutureWarning` says what was renamed.

    Args:
        given: keywords of a call.
        known: names that the call takes today.
    """
    now: dict[str, Any] = dict(given)
    told: list[str] = []
    if _for_tensorrt(given, known):
        now["target"] = "tensorrt"
        told.append("weight_symmetric was for TensorRT, which is target='tensorrt'")
    numbers = {name: now[name] for name in ("weights", "activations") if name in now}
    if numbers and "bits" in known and "bits" not in now:
        bits = f"W{numbers.get('weights', 8)}A{numbers.get('activations', 8)}"
        now = {name: value for name, value in now.items() if name not in numbers} | {"bits": bits}
        told.append(f"{' and '.join(numbers)} are bits={bits!r}")
    for old, new in RENAMED.items():
        if old in now and old not in known and new in known and new not in now:
            now[new] = now.pop(old)
            told.append(f"{old} is {new}")
    if "method_options" in known and "bits" not in known:
        loose = {name: now[name] for name in now if not _alike(name, known)}
        if loose:
            options: Any = now.get("method_options") or {}
            now = {name: value for name, value in now.items() if name not in loose}
            now["method_options"] = {**options, **loose}
            told.append(f"{' and '.join(loose)} go into method_options")
    if told:
        warnings.warn(f"options have new names: {', '.join(told)}", FutureWarning, stacklevel=4)
    return now


def _for_tensorrt(given: Mapping[str, Any], known: Collection[str]) -> bool:
    """Whether a call asks for what `weight_symmetric` was told to be for."""
    eight = given.get("bits", "W8A8") == "W8A8" and not {"weights", "activations"} & set(given)
    asked = bool(given.get("weight_symmetric")) and "weight_symmetric" not in known
    return asked and eight and "target" in known and "target" not in given


def _alike(name: str, known: Collection[str]) -> bool:
    """Whether `name` is known, or so much like a known one that it is rather misspelled."""
    return name in known or bool(difflib.get_close_matches(name, known, n=1, cutoff=_ALIKE))
