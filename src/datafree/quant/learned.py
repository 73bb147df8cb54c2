"""Quantizers while they are learned: soft rounding of weights, learned steps of activations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from datafree.quant.grid import fake_quantize
from datafree.quant.modules import ActivationQuantizer, Quantizer

_STRETCH_LOW, _STRETCH_HIGH = -0.1, 1.1
_SMALLEST_STEP = 1e-8


class SoftRounding(nn.Module):
    """AdaRound's weight quantizer: every weight learns whether to round down or up (B.5).

    ``w = s (clip(floor(W/s) + h(V) + z, qmin, qmax) - z)`` with the stretched sigmoid ``h(V) =
    clip(1.2 sigmoid(V) - 0.1, 0, 1)``. V starts where the float weight is reproduced. The base
    integers ``floor(W/s)`` stay those of the first step size, so with a learned step ``d w / d s``
    is the integer code minus the zero point (Genie-M, B.8).

    Attributes:
        logits: V, the shape of the weight.
        scale: s, a parameter if the step is learned, broadcastable to the weight.
    """

    base: Tensor
    zero_point: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, quantizer: Quantizer, *, learn_step: bool = False) -> None:
        """Start from `weight` on the grid of `quantizer`, which has a range; neither is changed."""
        super().__init__()
        self.grid = quantizer.grid
        scale = quantizer.scale.detach().clone()
        ratio = weight.detach() / scale
        base = torch.floor(ratio)
        self.logits = nn.Parameter(rounding_logits(ratio - base))
        self.register_buffer("base", base + quantizer.zero_point)
        self.register_buffer("zero_point", quantizer.zero_point.detach().clone())
        if learn_step:
            self.scale = nn.Parameter(scale)
        else:
            self.register_buffer("scale", scale)

    def shares(self) -> Tensor:
        """h(V) in [0, 1]: 0 rounds down, 1 rounds up."""
        stretched = torch.sigmoid(self.logits) * (_STRETCH_HIGH - _STRETCH_LOW) + _STRETCH_LOW
        return stretched.clamp(0, 1)

    def forward(self, weight: Tensor) -> Tensor:
        """The softly rounded weight; the argument is not looked at."""
        del weight
        return self._values(self.shares())

    def penalty(self, beta: float) -> Tensor:
        """``sum (1 - |2 h(V) - 1|^beta)``: zero where every weight has chosen a side."""
        return (1 - (2 * self.shares() - 1).abs().pow(beta)).sum()

    def step(self) -> Tensor:
        """The step size, kept positive."""
        return self.scale.clamp(min=_SMALLEST_STEP)

    def hard(self) -> Tensor:
        """The weight with every choice made, ``V >= 0`` up: exactly on the grid, no gradient."""
        with torch.no_grad():
            return self._values((self.logits >= 0).float())

    def _values(self, shares: Tensor) -> Tensor:
        codes = (self.base + shares).clamp(self.grid.qmin, self.grid.qmax)
        return (codes - self.zero_point) * self.step()


class LearnedStep(nn.Module):
    """An activation quantizer whose step size is learned, optionally on part of the elements.

    Gradient of the step as in LSQ (B.9). With ``drop = p`` every element stays float with
    probability p (QDrop, B.7).

    Attributes:
        scale: the step, a scalar parameter.
    """

    zero_point: Tensor

    def __init__(
        self, quantizer: ActivationQuantizer, drop: float, generator: torch.Generator
    ) -> None:
        """Start from the range of `quantizer`, which is not changed.

        Args:
            quantizer: calibrated.
            drop: probability of an element to stay float.
            generator: source of the choices, on the quantizer's device.
        """
        super().__init__()
        self.grid = quantizer.grid
        self.scale = nn.Parameter(quantizer.scale.detach().clone())
        self.register_buffer("zero_point", quantizer.zero_point.detach().clone())
        self.drop = drop
        self.generator = generator

    def step(self) -> Tensor:
        """The step size, kept positive."""
        return self.scale.clamp(min=_SMALLEST_STEP)

    def forward(self, values: Tensor) -> Tensor:
        """`values` on the grid, or part of them."""
        quantized = fake_quantize(values, self.step(), self.zero_point, self.grid)
        return mix(quantized, values, self.drop, self.generator)


def mix(quantized: Tensor, exact: Tensor, drop: float, generator: torch.Generator) -> Tensor:
    """Elements of `exact` with probability `drop`, elsewhere those of `quantized` (same shape)."""
    if not drop:
        return quantized
    kept = torch.empty_like(quantized, dtype=torch.bool).bernoulli_(1 - drop, generator=generator)
    return torch.where(kept, quantized, exact)


def rounding_logits(remainders: Tensor) -> Tensor:
    """V with ``h(V) = remainders``, which lie in [0, 1): ``-ln(1.2 / (r + 0.1) - 1)``."""
    width = _STRETCH_HIGH - _STRETCH_LOW
    return -torch.log(width / (remainders - _STRETCH_LOW) - 1)
