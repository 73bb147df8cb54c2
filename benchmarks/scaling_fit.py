"""How costs grow, by least squares on records of the tables `scaling` and `scaling_runs`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from benchmarks.record import Record
from datafree.synthesis._images import chunk_of

Sizes = Mapping[str, float]
"""How large a network is, and how many images pass it: see `benchmarks.kinds.cost.Cost`."""
Features = Callable[[Sizes], dict[str, float]]
HELD_OUT = "resnet50"
"""Network that no cost of a step is fitted on."""
HELD_OUT_RUN = "resnet50_96"
"""Likewise of whole runs."""
RUN_STEPS = 10
"""Steps of the images of the runs that are no default ones."""
_GIGA = 1e9


@dataclass(frozen=True)
class Power:
    """``seconds = factor * size ^ exponent``, with the standard error of the exponent."""

    exponent: float
    error: float
    factor: float

    @classmethod
    def of(cls, sizes: Sequence[float], seconds: Sequence[float]) -> Power:
        """Least squares on logarithms, of at least three points."""
        x, y = np.log(sizes), np.log(seconds)
        spread = float(((x - x.mean()) ** 2).sum())
        exponent = float(((x - x.mean()) * (y - y.mean())).sum()) / spread
        left = y - y.mean() - exponent * (x - x.mean())
        error = math.sqrt(float((left**2).sum()) / (len(x) - 2) / spread)
        return cls(exponent, error, math.exp(float(y.mean()) - exponent * float(x.mean())))

    def at(self, size: float) -> float:
        """Seconds of the line."""
        return self.factor * size**self.exponent

    def __str__(self) -> str:
        """As on a page."""
        return f"{self.exponent:.2f} ± {self.error:.2f}"


@dataclass(frozen=True)
class Linear:
    """Seconds as a sum of what features cost, none of them less than nothing.

    Attributes:
        prices: seconds of a unit of each feature.
        features: of sizes.
    """

    prices: Mapping[str, float]
    features: Features

    @classmethod
    def of(cls, features: Features, sizes: Sequence[Sizes], seconds: Sequence[float]) -> Linear:
        """Least squares of relative errors."""
        rows = [features(one) for one in sizes]
        names = list(rows[0])
        matrix = np.array([[row[name] for name in names] for row in rows])
        matrix = matrix / np.array(seconds)[:, None]
        scale = np.where(matrix.any(axis=0), matrix.max(axis=0), 1.0)
        prices = nnls(matrix / scale, np.ones(len(rows)))[0] / scale
        return cls(dict(zip(names, prices.tolist(), strict=True)), features)

    def at(self, sizes: Sizes) -> float:
        """Seconds of a network."""
        return sum(self.prices[name] * value for name, value in self.features(sizes).items())


def pass_features(sizes: Sizes) -> dict[str, float]:
    """Of a batch, through the network and back, in as many passes as it takes."""
    return {
        "gmacs": sizes["batch"] * sizes["macs"] / _GIGA,
        "gbytes": sizes["batch"] * sizes["kept"] / _GIGA,
        "layers": sizes["passes"] * sizes["layers"],
        "mweights": sizes["passes"] * sizes["weights"] / 1e6,
    }


def generator_features(sizes: Sizes) -> dict[str, float]:
    """Of a batch that passes as a whole, from a generator that is trained meanwhile."""
    return {
        **pass_features({**sizes, "passes": 1}),
        "megapixels": sizes["batch"] * sizes["pixels"] / 1e6,
        "gweights": sizes["generator"] / _GIGA,
    }


def block_features(sizes: Sizes) -> dict[str, float]:
    """Of a batch through every block by itself, and back."""
    return pass_features({**sizes, "passes": 1})


def rest_features(sizes: Sizes) -> dict[str, float]:
    """Of what a run does beside the steps of its images."""
    return {
        "run": 1.0,
        "layers": sizes["layers"],
        "gmacs": sizes["macs"] / _GIGA,
        "gbytes": sizes["kept"] / _GIGA,
        "mweights": sizes["weights"] / 1e6,
    }


STEPS: Mapping[str, Features] = {
    "zeroq": pass_features, "genie": generator_features, "genie_m": block_features,
}  # fmt: skip
"""What the cost of a step of each method is made of."""


@dataclass(frozen=True)
class Checked:
    """A model, and how far it is off.

    Attributes:
        model: of all networks but the one held out.
        errors: relative error of each network it was fitted on, by a model of the others.
        measured: seconds of the network held out.
        told: by the model.
    """

    model: Linear
    errors: Mapping[str, float]
    measured: float
    told: float

    @classmethod
    def of(
        cls, features: Features, seconds: Mapping[str, float], sizes: Mapping[str, Sizes], out: str
    ) -> Checked:
        """Fit on all networks but `out`.

        Args:
            features: of sizes.
            seconds: by network.
            sizes: of these.
            out: the network held out.
        """
        names = [name for name in seconds if name != out]

        def fitted(some: Sequence[str]) -> Linear:
            return Linear.of(features, [sizes[n] for n in some], [seconds[n] for n in some])

        errors: dict[str, float] = {}
        for name in names:
            others = fitted([other for other in names if other != name])
            errors[name] = others.at(sizes[name]) / seconds[name] - 1
        model = fitted(names)
        return cls(model, errors, seconds[out], model.at(sizes[out]))

    @property
    def error(self) -> float:
        """Relative error for the network held out."""
        return self.told / self.measured - 1

    @property
    def usual(self) -> float:
        """The median size of the errors of networks left out one by one."""
        return float(np.median(np.abs(list(self.errors.values()))))

    @property
    def worst(self) -> str:
        """Which of them is furthest off."""
        return max(self.errors, key=lambda name: abs(self.errors[name]))


def sizes_of(record: Record) -> dict[str, float]:
    """The numbers that models are made of."""
    return {k: v for k, v in record.measured.items() if isinstance(v, (int, float))}


def batched(sizes: Sizes, batch: int) -> dict[str, float]:
    """`sizes` with `batch` images in a step."""
    side = round(math.sqrt(sizes["pixels"]))
    at_once = chunk_of((3, side, side), batch, torch.device("cpu"))
    return {**sizes, "batch": batch, "passes": -(-batch // at_once)}


def step_model(records: Sequence[Record], method: str) -> Checked:
    """The cost of a step of `method`, by the records of one number of images a network."""
    own = {str(record.cell["network"]): record for record in records}
    seconds = {name: float(record.measured[method]["step"]) for name, record in own.items()}
    return Checked.of(STEPS[method], seconds, {n: sizes_of(r) for n, r in own.items()}, HELD_OUT)


def rest_model(records: Sequence[Record]) -> Checked:
    """The cost of a run beside the steps of its images."""
    own = {str(record.cell["network"]): record for record in records}
    seconds = {name: rest(record.measured) for name, record in own.items()}
    sizes = {name: sizes_of(record) for name, record in own.items()}
    return Checked.of(rest_features, seconds, sizes, HELD_OUT_RUN)


def rest(measured: Mapping[str, Any]) -> float:
    """CPU seconds of a run of few steps without these."""
    return float(measured["run"]["seconds"]) - RUN_STEPS * float(measured["dsg"]["step"])
