"""A weight quantizer that learns what to divide each weight by before rounding (FlexRound)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from datafree.quant.grid import fake_quantize
from datafree.quant.modules import Quantizer
from datafree.quant.straight import RoundedWeight


class DividedWeight(RoundedWeight):
    """Learn divisors of a weight, and its step size, straight through the rounding (Lee, 2023).

    ``w = s (clip(round(W / (s S_2 s_3 s_4) + z), qmin, qmax) - z)`` with divisors S_2 of every
    weight, s_3 of every output channel and, for convolutions, s_4 of every input channel. They are
    kept as logarithms, so that they stay positive, and begin at 1: as rounding to the nearest. As
    the gradient of S_2 has W as a factor, large weights move most, and 0 stays 0.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, quantizer: Quantizer, *, learn_step: bool = False) -> None:
        """Start from `weight` on the grid of `quantizer`, which has a range; neither is changed.

        Args:
            weight: (O, I, ...); of (O, I) there are no divisors of input channels, as in the paper.
            quantizer: of that weight.
            learn_step: whether its step size is a parameter.
        """
        super().__init__(quantizer, learn_step=learn_step)
        self.register_buffer("weight", weight.detach().clone())
        ones = [1] * (weight.ndim - 2)
        shapes = [weight.shape, (len(weight), 1, *ones)]
        if weight.ndim > 2:
            shapes.append((1, weight.shape[1], *ones))
        self.divisors = nn.ParameterList([nn.Parameter(weight.new_zeros(s)) for s in shapes])

    def learned(self) -> list[nn.Parameter]:
        """Logarithms of S_2, s_3 and s_4."""
        return list(self.divisors)

    def forward(self, weight: Tensor) -> Tensor:
        """The rounded weight; the argument is not looked at."""
        del weight
        together = self.divisors[0]
        for logarithm in self.divisors[1:]:
            together = together + logarithm
        divided = self.weight * torch.exp(-together)
        return fake_quantize(divided, self.step(), self.zero_point, self.grid)
