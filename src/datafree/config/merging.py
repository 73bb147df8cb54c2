"""One choice laid over another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datafree.config.options import METHODS
from datafree.config.protocols import PROTOCOLS, free_of_protocols
from datafree.config.scheme import TARGETED
from datafree.config.widths import name_patterns

_EXCLUSIVE = (("average_bits", "budget"),)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a run: `base` with `changes` laid over it.

    Options of a method are added to those of `base`, unless another method is named, and so are
    layers with bits of their own and layers kept in float; an average replaces a budget, and back.
    The protocol of another paper takes all that protocols settle out of `base`.
    """
    if changes.get("protocol") in PROTOCOLS and changes["protocol"] != base.get("protocol"):
        base = free_of_protocols(base)
    moved = "target" in changes and changes["target"] != base.get("target", changes["target"])
    # What another target settled does not bind this one.
    base = {k: v for k, v in base.items() if not (moved and k in TARGETED)}
    merged = {**base, **changes}
    for name in METHODS:
        key = f"{name}_options"
        same = name not in changes or changes[name] == base.get(name)
        kept = base.get(key, {}) if same else {}
        given = changes.get(key) or {}
        if key in merged and isinstance(given, Mapping):
            merged[key] = {**kept, **given}
    if changes.get("layer_bits") and base.get("layer_bits"):
        own = changes["layer_bits"]
        kept = {name: bits for name, bits in base["layer_bits"].items() if name not in own}
        merged["layer_bits"] = {**kept, **own}  # of several patterns the last one holds
    if changes.get("keep_float") and base.get("keep_float"):
        added = name_patterns(changes["keep_float"])
        merged["keep_float"] = (*name_patterns(base["keep_float"]), *added)
    for pair in _EXCLUSIVE:
        given = [name for name in pair if changes.get(name) is not None]
        if len(given) == 1:
            merged |= {name: None for name in pair if name not in given and name in merged}
    return merged
