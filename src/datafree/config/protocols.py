"""The protocols of papers: where quantizers stand, on which grids, and how long is learned.

A number says something only beside the protocol it was measured under. Each is a set of fields of
a run; what is given beside it changes it, and is told wherever the protocol is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

Protocol = Literal["paper", "zeroq", "dsg", "gdfq", "dfqf", "brecq", "qdrop", "genie"]

_ALL: dict[str, Any] = {
    "target": "paper", "placement": "after_activation", "policy": "all", "ste": "clipped",
    "weight_granularity": "channel", "weight_range": "minmax",
    "symmetric_weights": False, "symmetric_activations": False,
    "calibrator": "minmax", "calibrator_options": {},
    "equalize": False, "equalize_by": "magnitude",
    "replace_relu6": False, "absorb_biases": False, "split_outliers": 0.0,
    "bias_correction": "none",
    "photos": None,
    "reconstruction": "none", "reconstruction_options": {},
    "training": "none", "training_options": {},
}  # fmt: skip
# Rounding learned block by block; images that were not made are the papers' own.
_BLOCKS = _ALL | {
    "placement": "every_input", "policy": "brecq", "weight_range": "mse", "images": 1024,
    "calibrator": "mse", "calibrator_options": {"power": 2.4, "candidates": 100},
}  # fmt: skip

PROTOCOLS: dict[str, Mapping[str, Any]] = {
    "zeroq": _ALL | {"method": "zeroq", "method_options": {"least_fall": 0.0}, "images": 32},
    "dsg": _ALL
    | {
        "method": "dsg",
        "method_options": {"least_fall": 0.0, "batch_size": None},
        "images": 32,
    },
    "gdfq": _ALL
    | {
        "ste": "full",
        "calibrator": "ema",
        "calibrator_options": {"mode": "momentum"},
        "training": "gdfq",
        "training_options": {"batch_norm": "frozen"},
    },
    "dfqf": _ALL
    | {
        "policy": "first_last_8",
        "ste": "clip_first",
        "weight_granularity": "tensor",
        "symmetric_weights": True,
        "symmetric_activations": True,
        "calibrator": "bounded_mse",
        "training": "dfqf",
        "training_options": {"batch_norm": "frozen", "adversarial": "cross_entropy"},
    },
    "brecq": _BLOCKS
    | {
        "reconstruction": "brecq",
        "calibrator_options": {"power": 2.4, "candidates": 80},
    },
    "qdrop": _BLOCKS
    | {
        "policy": "qdrop",
        "reconstruction": "qdrop",
        "calibrator_options": {"power": 2.4, "candidates": 100, "search": "zero_point"},
    },
    "genie": _BLOCKS
    | {
        "symmetric_activations": True,
        "ste": "clip_first",
        "method": "genie",
        "method_options": {},
        "reconstruction": "genie_m",
        "reconstruction_options": {"step_rates": "unfolded"},
    },
}
"""Fields of a run by the name of the paper; `paper` itself has none, see `ImageOptions`."""

assert set(PROTOCOLS) | {"paper"} == set(get_args(Protocol))  # noqa: S101 - one list of names

_SETTLED = frozenset(name for fields in PROTOCOLS.values() for name in fields)


def free_of_protocols(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a run without those that any protocol settles."""
    return {name: value for name, value in values.items() if name not in _SETTLED}


def departures(name: str | None, values: Mapping[str, Any]) -> dict[str, Any]:
    """What of a run is not as protocol `name` has it, by field; options of methods one by one.

    Args:
        name: of a protocol, or None; those without fields are never departed from.
        values: all fields of the run as plain values.
    """
    found: dict[str, Any] = {}
    for field, wanted in PROTOCOLS.get(name or "", {}).items():
        actual = values[field]
        if not isinstance(wanted, Mapping):
            if actual != wanted:
                found[field] = actual
            continue
        method = field.removesuffix("_options")
        if method in found:
            continue  # the options are those of another method
        for option in dict.fromkeys((*wanted, *actual)):
            if option not in actual or option not in wanted or actual[option] != wanted[option]:
                found[f"{method} {option}"] = actual.get(option, "default")
    return found
