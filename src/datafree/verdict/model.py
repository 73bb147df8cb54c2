"""A monotone curve from features to the loss of top-1, fitted on our own benchmark cells."""

from __future__ import annotations

import math
from functools import cache
from importlib.resources import files

from datafree.config import Frozen
from datafree.verdict.features import Features

_FILE = "model.json"
_UNIT_DB = 5.0  # decibels count in steps of about a factor of 1.8


class Model(Frozen):
    """What ``benchmarks/fit_verdict.py`` writes.

    The share of its lead over chance that the student lost, r, is estimated as
    ``log((r + e) / (1 - r + e)) = bias + sum_i weights_i x_i`` with features x that grow with the
    damage and weights that are not negative: more damage never means less loss.
    """

    weights: dict[str, float]
    """By feature, none negative."""
    bias: float
    """Of a student without any damage."""
    floor: float
    """e, a share: what is near 0 or 1 is not told apart."""
    below: float
    """How far the interval reaches down, in logarithms of odds."""
    above: float
    """How far it reaches up."""
    top1: float
    """Assumed of the teacher, in percent: the mean over the networks fitted on."""
    networks: int
    """Networks it was fitted on."""
    cells: int
    """Students it was fitted on."""
    records: str
    """Digest of their records."""

    def loss(self, found: Features) -> tuple[float, float, float]:
        """Estimated loss of top-1 in points, and the ends of its interval."""
        score = self.score(found)
        chance = 100 / found.classes
        return tuple(  # pyright: ignore[reportReturnType]
            share_of(score + shift, self.floor) * max(self.top1 - chance, 0.0)
            for shift in (0.0, -self.below, self.above)
        )

    def score(self, found: Features) -> float:
        """Logarithm of the odds."""
        told = inputs(found, self.floor)
        return self.bias + sum(weight * told[name] for name, weight in self.weights.items())


def log_odds(share: float, floor: float) -> float:
    """``log((r + e) / (1 - r + e))`` of a share r, cut at 0 and 1."""
    share = min(max(share, 0.0), 1.0)
    return math.log((share + floor) / (1 - share + floor))


def share_of(odds: float, floor: float) -> float:
    """The inverse of `log_odds`, cut at 0 and 1."""
    if odds > 0:
        shrunk = math.exp(-odds)
        return min(max((1 + floor - floor * shrunk) / (1 + shrunk), 0.0), 1.0)
    grown = math.exp(odds)
    return min(max((grown * (1 + floor) - floor) / (1 + grown), 0.0), 1.0)


def inputs(found: Features, floor: float) -> dict[str, float]:
    """The features as the model takes them: without unit, growing with the damage."""
    return {
        "kl": math.log(found.kl + floor),
        "flips": log_odds(found.flips, floor),
        "expected_loss": log_odds(found.expected_loss, floor),
        "margin_loss": log_odds(found.margin_loss, floor),
        "doubt": log_odds(found.doubt, floor),
        "near_flips": log_odds(2 * found.near_flips, floor),
        "sqnr_db": -found.sqnr_db / _UNIT_DB,
        "worst_layer_db": -_known(found.worst_layer_db, found.sqnr_db) / _UNIT_DB,
    }


def _known(worst: float | None, sqnr: float) -> float:
    """The noise of the worst layer; where it was not measured, that of the logits."""
    return sqnr if worst is None else worst


@cache
def fitted() -> Model:
    """The model that comes with the package."""
    text = files("datafree.verdict").joinpath(_FILE).read_text(encoding="utf-8")
    return Model.model_validate_json(text)
