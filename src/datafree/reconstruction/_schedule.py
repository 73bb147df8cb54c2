"""How long and how fast a reconstruction learns: rates, and the penalty's exponent (B.13)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from datafree.progress.deadline import Deadline
from datafree.quant.grid import Grid

_STEPS_FACTOR = 10.0


@dataclass(frozen=True)
class Stage:
    """One pass through the network.

    Attributes:
        iterations: steps per unit.
        rounding_lr: rate of the rounding variables; 0 keeps the weights.
        weight_step_lr: rate of the weights' step sizes; 0 keeps them.
        activations: activation quantizers quantize; otherwise they let float values pass.
        activation_lr: rate of their step sizes; 0 keeps them.
        steps_below: only activation quantizers of fewer bits learn their step.
        drop: probability of every activation, and every input of the unit, to be the float one.
        power: exponent of the error.
        fisher: weigh the error by its influence on the network's output.
        weights: what is learned of them, at the rate of the rounding variables: `soft` roundings;
            the weights themselves, straight through their rounding, in step sizes (`straight`); or
            the logarithms of what they are `divided` by.
        prediction: weight of what the whole network answers; 0 leaves it out.
        temperature: of that.
        features: share of what the last linear layer reads in the loss; 0 leaves it out.
        growth: factor on the rates of step sizes, where `step_rate` lets them have it.
    """

    iterations: int
    rounding_lr: float = 1e-3
    weight_step_lr: float = 0.0
    activations: bool = True
    activation_lr: float = 0.0
    steps_below: int = 9
    drop: float = 0.0
    power: float = 2.0
    fisher: bool = False
    weights: Literal["soft", "straight", "divided"] = "soft"
    prediction: float = 0.0
    temperature: float = 4.0
    features: float = 0.0
    growth: float = 1.0

    def faster(self, factor: float) -> Stage:
        """The same with `factor` on the rounding rate, and up to 10 of it on those of steps.

        Genie-M with 50 on the rates of steps too lost 5.5 points on ResNet-20 (W2A4, 100 steps).
        """
        growth = min(factor, _STEPS_FACTOR)
        return replace(self, rounding_lr=self.rounding_lr * factor, growth=growth)

    def step_rate(self, rate: float, step: float, grid: Grid) -> float:
        """Adam's rate of a step size: `rate` times `growth`, or what is left of it.

        What is more than `rate` must not move the end of the range by more than one step at a time:
        published rates are absolute, and steps of 8 bits a hundredth of those of 2. ResNet-20 at
        W8A8 had 18.9 % left of 88 after 200 steps of Genie-M at ten times the rate, 87.9 at the
        rate itself.

        Args:
            rate: as published.
            step: the step size, in what its parameter is counted in.
            grid: its codes.
        """
        room = step / (grid.qmax - grid.qmin) / rate
        return rate * min(self.growth, max(1.0, room))


def fractions(iterations: int, deadline: Deadline) -> Iterator[float]:
    """How much of the way lies behind before every step: of the steps, or of the time if more.

    It ends with the steps, or at the deadline.
    """
    time = deadline.left
    for done in range(iterations):
        fraction = done / iterations
        if deadline.limited:
            fraction = max(fraction, 1 - deadline.left / time) if time else 1.0
            if fraction >= 1:
                return
        yield fraction


def falling(fraction: float) -> float:
    """Factor on a rate that falls to 0 along a cosine, at a fraction of the way."""
    return 0.5 * (1 + math.cos(math.pi * fraction))


@dataclass(frozen=True)
class Penalty:
    """What drives rounding variables to 0 or 1: ``weight * sum (1 - |2h - 1|^beta)``.

    Attributes:
        weight: factor.
        warmup: share of the steps without it.
        start: beta after that.
        end: beta at the last step, reached linearly.
    """

    weight: float
    warmup: float
    start: float
    end: float

    def beta(self, done: float) -> float | None:
        """Exponent when the share `done` of the steps lies behind; None before it sets in."""
        if done < self.warmup or not self.weight:
            return None
        left = (1 - done) / max(1 - self.warmup, 1e-12)
        return self.end + (self.start - self.end) * left
