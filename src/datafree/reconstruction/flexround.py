"""Rounding after a division that is learned (Lee et al., ICML 2023)."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from datafree.reconstruction._schedule import Stage
from datafree.reconstruction.straight import Straight


class FlexRound(Straight):
    """Learn what every weight is divided by before it is rounded, with its step size.

    ``min_(S, s, s_a) |B(x) - B'(x'; S, s, s_a)|^2`` between the outputs of float block B and
    student block B', with the weights ``W' = s (clip(round(W / (s S_2 s_3 s_4) + z), qmin, qmax) -
    z)``: divisors S_2 of every weight, s_3 of every output channel and s_4 of every input channel
    of a convolution, all 1 at first. Large weights move most, several steps if need be; nothing
    has to drive them to either neighbour. Activations learn as in `qdrop`, as the paper has it.
    """

    citation: ClassVar[str] = (
        "Lee et al. (2023), FlexRound: Learnable Rounding based on Element-wise Division for"
        " Post-Training Quantization, ICML"
    )

    iterations: int = Field(default=5_000, ge=1)
    rounding_lr: float = Field(default=3e-3, gt=0)
    """Adam's rate for the logarithms of the divisors; falls to 0 along a cosine."""
    lr_factor: float | None = Field(default=1.0, gt=0)
    """Factor on `rounding_lr`, and up to 10 of it on the rates of step sizes. Divisors begin where
    rounding is to the nearest and need no long way: on the built-in digits (W2A4, 200 steps) 1
    keeps 99.7 %, 25, what the other methods take for so few steps, 69.7. None is what they take."""

    def stages(self) -> tuple[Stage, ...]:
        """One pass: divisors, steps of weights and activation steps."""
        (straight,) = super().stages()
        return (replace(straight, weights="divided"),)
