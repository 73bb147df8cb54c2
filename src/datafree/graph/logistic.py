"""The logistic function as onnxruntime's integer kernels have it, to the last bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_REACH = 18.0
_ODD = (
    4.37031012579801e-11, 1.15627324459942e-07, 6.08574864600143e-05, 8.51377133304701e-03,
    2.48287947061529e-01,
)  # fmt: skip
_EVEN = (
    6.10247389755681e-13, 5.76102136993427e-09, 6.29106785017040e-06, 1.70198817374094e-03,
    1.16817656904453e-01, 9.93151921023180e-01,
)  # fmt: skip


def logistic(values: Tensor) -> Tensor:
    """``1 / (1 + exp(-x))`` by a quotient of polynomials, in float32 with fused multiply-adds.

    ``x P(x^2) / Q(x^2) + 1/2`` between -18 and 18, cut to [0, 1]: the minimax approximation that
    numeric libraries use where an exponential takes too long. It differs from the exact function by
    some units in the last place, which at the border of two codes are a whole code.

    Args:
        values: any shape, float32.

    Returns:
        Numbers in [0, 1], of the shape of `values`.
    """
    x = values.float().clamp(-_REACH, _REACH)
    square = x * x
    quotient = _horner(square, _ODD) * x / _horner(square, _EVEN)
    return (quotient + 0.5).clamp(0, 1)


def _horner(square: Tensor, coefficients: Sequence[float]) -> Tensor:
    """A polynomial, highest coefficient first; every step is rounded once."""
    wide = square.double()
    numbers = torch.tensor(coefficients, dtype=torch.float32, device=square.device).double()
    found = torch.full_like(square, float(numbers[0]))
    for number in numbers[1:]:
        found = (found.double() * wide + number).float()
    return found
