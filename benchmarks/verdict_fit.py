"""Fitting the estimate of what was lost on our own records, and judging it network by network."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from benchmarks.record import Record
from datafree.verdict.estimate import Verdict, estimate
from datafree.verdict.features import Features
from datafree.verdict.model import Model, inputs, log_odds

USED = ("flips",)
"""Features of the estimate: others, on top of it, were further off on networks left out."""
FLOOR = 0.002
"""Shares nearer to 0 or 1 are not told apart: half an image of 256."""
RIDGE = 2.0
"""Pull of the weights to 0, in units of a row."""
FEW = 8
"""Students of a network from which on it counts as much as any other."""
LEVEL = 0.9
"""Share of students, each of a network left out, that the interval is to cover."""


@dataclass(frozen=True)
class Row:
    """One student.

    Attributes:
        network: its name.
        name: recipe and bits.
        loss: true loss of top-1, in points.
        teacher: top-1 of its teacher, in percent.
        features: on held-out images.
        line: its record, for the digest.
    """

    network: str
    name: str
    loss: float
    teacher: float
    features: Features
    line: str

    @classmethod
    def of(cls, record: Record) -> Row:
        """From a record of the table `verdict`."""
        told, cell = record.measured, record.cell
        return cls(
            str(cell["model"]), f"{cell['recipe']} {cell['bits']}", told["loss"],
            told["teacher"], Features.model_validate(told["features"]), record.line(),
        )  # fmt: skip

    @property
    def fitted(self) -> bool:
        """Whether it is one to fit on: two classes leave half of the answers right by chance."""
        return self.features.classes > 2

    @property
    def odds(self) -> float:
        """What the model is to tell: of the share of the lead over chance that was lost."""
        lead = max(self.teacher - 100 / self.features.classes, 1.0)
        return log_odds(self.loss / lead, FLOOR)


@dataclass(frozen=True)
class Told:
    """What was told of a student by a model that has not seen its network."""

    row: Row
    verdict: Verdict

    @property
    def covered(self) -> bool:
        """Whether the interval has the true loss; a gain counts as no loss."""
        return self.verdict.low <= max(self.row.loss, 0.0) <= self.verdict.high


def fit(rows: Sequence[Row], names: Sequence[str] = USED) -> Model:
    """The model of all `rows` to fit on, its interval from networks left out one after the other.

    Its ends are errors that one student in twenty exceeds, all students counting the same.
    """
    rows = [row for row in rows if row.fitted]
    left_out: list[float] = []
    for network in dict.fromkeys(row.network for row in rows):
        curve = _curve([row for row in rows if row.network != network], names)
        own = (row for row in rows if row.network == network)
        left_out += [row.odds - curve.score(row.features) for row in own]
    tail = (1 - LEVEL) / 2
    below, above = np.quantile(left_out, (tail, 1 - tail))
    changes = {"below": max(0.0, -float(below)), "above": max(0.0, float(above))}
    return _curve(rows, names).model_copy(update=changes)


def leave_one_out(rows: Sequence[Row], names: Sequence[str] = USED) -> list[Told]:
    """What is told of every row by a model, interval and all, of the other networks."""
    found: list[Told] = []
    for network in dict.fromkeys(row.network for row in rows):
        model = fit([row for row in rows if row.network != network], names)
        own = (row for row in rows if row.network == network)
        found += [Told(row, estimate(row.features, model)) for row in own]
    return found


def _curve(rows: Sequence[Row], names: Sequence[str]) -> Model:
    """Least squares with weights that are not negative; every network counts the same."""
    x = np.array([[inputs(row.features, FLOOR)[name] for name in names] for row in rows])
    y = np.array([row.odds for row in rows])
    networks = [row.network for row in rows]
    weight = np.array([1 / max(networks.count(row.network), FEW) for row in rows])
    weight = np.sqrt(weight / weight.mean())
    middle = np.average(x, axis=0, weights=weight**2)
    mean = float(np.average(y, weights=weight**2))
    pull = RIDGE * np.eye(len(names))
    left = np.vstack([(x - middle) * weight[:, None], pull])
    right = np.concatenate([(y - mean) * weight, np.zeros(len(names))])
    slopes: NDArray[np.float64] = nnls(left, right)[0]
    teachers = {row.network: row.teacher for row in rows}
    return Model(
        weights={name: float(slope) for name, slope in zip(names, slopes, strict=True)},
        bias=mean - float(slopes @ middle),
        floor=FLOOR, below=0.0, above=0.0,
        top1=sum(teachers.values()) / len(teachers),
        networks=len(teachers), cells=len(rows),
        records=hashlib.sha256("".join(row.line for row in rows).encode()).hexdigest()[:16],
    )  # fmt: skip
