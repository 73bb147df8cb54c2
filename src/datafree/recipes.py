"""Named choices of all methods together: what to take when one does not want to choose."""

from __future__ import annotations

import json
from typing import Any, Literal

from datafree.config import Frozen, merge
from datafree.errors import UnknownNameError

# Names of the command line for a method and for its hyper-parameters.
_OPTIONS = {
    "synthesis": ("method", "option"),
    "calibration": ("calibrator", "calibrator-option"),
    "reconstruction": ("reconstruction", "reconstruction-option"),
    "training": ("training", "training-option"),
}
# Fields of a run that are a matter of method.
_CHOSEN = frozenset(
    ("synthesis", "images", "calibration", "equalize", "replace_relu6", "absorb_biases",
     "split_outliers", "bias_correction", "reconstruction", "training", "generator", "max_time",
     "precision", "allocation")
)  # fmt: skip
_SCHEME_OPTIONS = {
    ("weight_granularity", "tensor"): "--per-tensor",
    ("weight_range", "mse"): "--weight-range mse",
}


class Recipe(Frozen):
    """A run without its network and its bits.

    Attributes:
        what: one line for people.
        fields: fields of `RunConfig` as plain values.
        command: of the command line that takes it.
    """

    what: str
    fields: dict[str, Any]
    command: Literal["quantize", "distill"] = "quantize"

    def described(self) -> str:
        """The options of the command line that choose the same."""
        parts: list[str] = []
        for key, value in self.fields.items():
            option, more = _OPTIONS.get(key, (key.replace("_", "-"), ""))
            if key == "training" and self.command == "distill":
                parts += [f"--option {k}={_typed(v)}" for k, v in value["options"].items()]
            elif key == "scheme":
                parts += [_SCHEME_OPTIONS[item] for item in value.items()]
            elif isinstance(value, dict):
                parts.append(f"--{option} {value['name']}")
                parts += [f"--{more} {k}={_typed(v)}" for k, v in value.get("options", {}).items()]
            else:
                parts.append(f"--{option}" if value is True else f"--{option} {value}")
        return " ".join(parts)


def _typed(value: Any) -> str:
    """As one word of the command line."""
    return json.dumps(value, separators=(",", ":"))


RECIPES: dict[str, Recipe] = {
    "dfq": Recipe(
        what="no images at all: equalization, biases and ranges from batch norms (Nagel, 2019)",
        fields={
            "scheme": {"weight_granularity": "tensor"},
            "equalize": True,
            "replace_relu6": True,
            "absorb_biases": True,
            "bias_correction": "analytic",
            "calibration": {"name": "bn_statistics"},
        },
    ),
    # Equalization is left out: with one grid per channel it gains nothing, and ReLU6 networks pay.
    "fast": Recipe(
        what="seconds: ranges from a few images, biases corrected from batch norms",
        fields={
            "synthesis": {"name": "dsg", "options": {"iterations": 100}},
            "images": 32,
            "calibration": {"name": "mse"},
            "bias_correction": "analytic",
        },
    ),
    "balanced": Recipe(
        what="minutes: images of DSG, ranges of least error, rounding learned by AdaRound",
        fields={
            "scheme": {"weight_range": "mse"},
            "synthesis": {"name": "dsg", "options": {"iterations": 200}},
            "images": 128,
            "calibration": {"name": "mse", "options": {"power": 2.4}},
            "reconstruction": {"name": "adaround", "options": {"iterations": 500}},
        },
    ),
    "best": Recipe(
        what="hours on a processor: images of Genie, rounding and steps learned by Genie-M",
        fields={
            "scheme": {"weight_range": "mse"},
            "synthesis": {"name": "genie", "options": {"iterations": 1000}},
            "images": 512,
            "calibration": {"name": "mse", "options": {"power": 2.4}},
            "reconstruction": {"name": "genie_m", "options": {"iterations": 5000}},
        },
    ),
    # Weights of the statistics and falling rates are not the paper's: benchmarks/README.md has what
    # they gain.
    "trained": Recipe(
        what="tens of minutes: rounding learned by Genie-M on images of DFQF's generator, then all"
        " weights and ranges fine-tuned",
        fields={
            "scheme": {"weight_range": "mse"},
            "reconstruction": {"name": "genie_m", "options": {"iterations": 500}},
            "training": {
                "name": "dfqf",
                "options": {
                    "beta": 10.0,
                    "update_generator": False,
                    "milestones": [0.5, 0.8],
                    "width": 32,
                    "batch_size": 64,
                    "warmup": 300,
                    "iterations": 600,
                },
            },
        },
    ),
    # A generator at the paper's rate runs away from a student with few steps.
    "short": Recipe(
        what="an hour or two: a slower generator, five steps of the student for each of its own",
        command="distill",
        fields={
            "training": {
                "name": "distill",
                "options": {
                    "student_steps": 5,
                    "generator_lr": 0.001,
                    "gamma": 1.0,
                    "beta": 10.0,
                    "milestones": [0.5, 0.8],
                    "width": 32,
                    "batch_size": 64,
                    "warmup": 2000,
                    "iterations": 300,
                },
            },
        },
    ),
}


def recipe_fields(name: str | None, command: str = "quantize") -> dict[str, Any]:
    """The fields of recipe `name` of `command`; nothing for None.

    Raises:
        UnknownNameError: no such recipe; the message offers the nearest.
    """
    if name is None:
        return {}
    own = {key: recipe for key, recipe in RECIPES.items() if recipe.command == command}
    if name not in own:
        raise UnknownNameError(f"recipe of {command}", name, own)
    return own[name].fields


def laid_over(base: dict[str, Any], name: str | None) -> dict[str, Any]:
    """Fields of a run with the methods of recipe `name` instead of its own; all kept for None.

    What a recipe does not name goes back to its default, so that nothing of another choice stays.
    """
    if name is None:
        return base
    kept = {key: value for key, value in base.items() if key not in _CHOSEN}
    if "scheme" in kept:
        ranges = ("weight_range", "weight_granularity", "layer_bits")
        kept["scheme"] = {k: v for k, v in kept["scheme"].items() if k not in ranges}
    return merge(kept, recipe_fields(name))
