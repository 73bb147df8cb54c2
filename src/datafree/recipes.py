"""Named choices of all methods together: what to take when one does not want to choose."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from datafree.config import Frozen
from datafree.config.fields import option_name
from datafree.config.protocols import PROTOCOLS, free_of_protocols
from datafree.errors import UnknownNameError

# Fields of a run that are a matter of method; a recipe sets them, or takes them back to default.
_CHOSEN = frozenset(
    ("method", "method_options", "protocol", "images", "calibrator", "calibrator_options",
     "equalize", "equalize_by", "replace_relu6", "absorb_biases", "split_outliers",
     "bias_correction",
     "reconstruction", "reconstruction_options", "training", "training_options", "generator",
     "max_time", "precision", "average_bits", "budget", "candidate_bits", "weight_range",
     "weight_granularity", "layer_bits")
)  # fmt: skip


class Recipe(Frozen):
    """A run without its network and its bits."""

    what: str
    """One line for people."""
    fields: dict[str, Any]
    """Fields of a run as plain values."""
    command: Literal["quantize", "distill"] = "quantize"
    """Of the command line that takes it."""

    def described(self) -> str:
        """The options of the command line that choose the same."""
        parts: list[str] = []
        for name, value in self.fields.items():
            option = option_name(name)
            if isinstance(value, dict):
                parts += [f"{option} {key}={_typed(item)}" for key, item in value.items()]
            else:
                parts.append(option if value is True else f"{option} {value}")
        return " ".join(parts)


def _typed(value: Any) -> str:
    """As one word of the command line."""
    return json.dumps(value, separators=(",", ":"))


RECIPES: dict[str, Recipe] = {
    "dfq": Recipe(
        what="no images at all: equalization, biases and ranges from batch norms (Nagel, 2019)",
        fields={
            "weight_granularity": "tensor",
            "equalize": True,
            "replace_relu6": True,
            "absorb_biases": True,
            "bias_correction": "analytic",
            "calibrator": "bn_statistics,mse",
        },
    ),
    # Equalization is left out: with one grid per channel it gains nothing, and ReLU6 networks pay.
    "fast": Recipe(
        what="seconds: ranges from a few images, biases corrected from batch norms",
        fields={
            "method": "dsg,psaq,prior",
            "method_options": {"iterations": 100},
            "images": 32,
            "calibrator": "mse",
            "bias_correction": "analytic",
        },
    ),
    "balanced": Recipe(
        what="minutes: images of DSG, ranges of least error, rounding learned by AdaRound",
        fields={
            "method": "dsg,psaq,prior",
            "method_options": {"iterations": 200},
            "images": 128,
            "calibrator": "mse",
            "calibrator_options": {"power": 2.4},
            "reconstruction": "adaround",
            "reconstruction_options": {"iterations": 500},
        },
    ),
    "best": Recipe(
        what="hours on a processor: images of Genie, rounding and steps learned by Genie-M",
        fields={
            "method": "genie,psaq,prior",
            "method_options": {"iterations": 1000},
            "images": 512,
            "calibrator": "mse",
            "calibrator_options": {"power": 2.4},
            "reconstruction": "genie_m",
            "reconstruction_options": {"iterations": 5000},
        },
    ),
    # Weights of the statistics and falling rates are not the paper's: docs/results/ has what they
    # gain.
    "trained": Recipe(
        what="tens of minutes: rounding learned by Genie-M on images of DFQF's generator, then all"
        " weights and ranges fine-tuned",
        fields={
            "reconstruction": "genie_m",
            "reconstruction_options": {"iterations": 500},
            "training": "dfqf",
            "training_options": {
                "beta": 10.0,
                "update_generator": False,
                "milestones": [0.5, 0.8],
                "width": 32,
                "batch_size": 64,
                "warmup": 300,
                "iterations": 600,
            },
        },
    ),
    # A low temperature, and a rate that learned rounding survives: docs/results/together.md.
    "tuned": Recipe(
        what="the better part of an hour: rounding learned by Genie-M on images of Genie, then all"
        " weights fine-tuned on them",
        fields={
            "method": "genie,psaq,prior",
            "method_options": {"iterations": 500},
            "images": 512,
            "calibrator": "mse",
            "calibrator_options": {"power": 2.4},
            "reconstruction": "genie_m",
            "reconstruction_options": {"iterations": 2000},
            "training": "fixed_set",
            "training_options": {
                "iterations": 1600,
                "batch_size": 64,
                "student_lr": 0.003,
                "milestones": [0.5, 0.8],
                "temperature": 4.0,
                "distillation_weight": 1.0,
                "weights": "lsq",
                "activations": "lsq",
                "holdout": 128,
                "checks": 4,
            },
        },
    ),
    # A generator at the paper's rate runs away from a student with few steps.
    "short": Recipe(
        what="an hour or two: a slower generator, five steps of the student for each of its own",
        command="distill",
        fields={
            "training_options": {
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


def laid_over(base: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """Fields of a run with the methods of recipe `name` instead of its own; all kept for None.

    What a recipe does not name goes back to its default, so that nothing of another choice stays.
    """
    if name is None:
        return dict(base)
    base = free_of_protocols(base) if base.get("protocol") in PROTOCOLS else base
    kept = {key: value for key, value in base.items() if key not in _CHOSEN}
    return {**kept, **recipe_fields(name)}
