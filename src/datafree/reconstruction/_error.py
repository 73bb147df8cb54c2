"""What a reconstruction lowers: the error of a block's output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from datafree.losses import Heads, distillation
from datafree.tensors import inner_product


def output_error(
    outputs: Tensor, targets: Tensor, power: float = 2.0, weights: Tensor | None = None
) -> Tensor:
    """``|outputs - targets|^power``, summed over channels, averaged over the rest: a scalar.

    Args:
        outputs: (B, C, ...).
        targets: same shape.
        power: exponent.
        weights: factors of the same shape, or None.
    """
    share = outputs.shape[1] / outputs.numel()
    if power == 2 and weights is None:
        squares: Tensor = _SquaredError.apply(outputs, targets)  # pyright: ignore
        return squares * share
    difference = outputs - targets
    error = difference.square() if power == 2 else difference.abs().pow(power)
    if weights is not None:
        error = error * weights
    return error.sum() * share


def prediction_error(
    answers: Tensor, wanted: Tensor, temperature: float, heads: Heads = ()
) -> Tensor:
    """``KL(softmax(wanted / T) || softmax(answers / T))``: a scalar (PD-Quant's term).

    Args:
        answers: (B, K) of the float network, behind a unit of the student.
        wanted: (B, K) of the float network alone.
        temperature: T.
        heads: what networks return, if it is more than logits (`datafree.losses.distillation`).
    """
    return distillation(answers, wanted, temperature, heads=heads) / temperature**2


class _SquaredError(torch.autograd.Function):
    """``sum (outputs - targets)^2``, differentiable once, for `outputs` only.

    One pass over the activations on the way back where autograd's own takes five: as much as the
    convolution before it.
    """

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, targets: Tensor) -> Tensor:
        """Keep the difference: it is half the gradient."""
        difference = outputs - targets
        ctx.save_for_backward(difference)
        return inner_product(difference, difference)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch calls it by position
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor, None]:
        """``2 (outputs - targets)`` times the gradient of what came of the sum."""
        (difference,) = ctx.saved_tensors
        return difference * (2 * gradient), None
