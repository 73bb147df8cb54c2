"""A weight quantizer while the weight itself is learned, straight through its rounding (B.9)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from datafree.quant.grid import fake_quantize, smallest_step
from datafree.quant.modules import Quantizer


class StraightWeight(nn.Module):
    """Learn the weight and its step size; the gradient passes the rounding as if it were not there.

    ``w = s (clip(round(U s_0 / s + z), qmin, qmax) - z)`` with the weight U in units of the first
    step s_0, so that one rate fits all layers. The gradient of U is straight through inside the
    grid and 0 outside; that of s is LSQ's (Esser et al., ICLR 2020).

    Attributes:
        weight: U, the shape of the weight.
        scale: s, a parameter if the step is learned, broadcastable to the weight.
    """

    zero_point: Tensor
    first: Tensor
    scale: Tensor
    smallest: Tensor

    def __init__(self, weight: Tensor, quantizer: Quantizer, *, learn_step: bool = False) -> None:
        """Start from `weight` on the grid of `quantizer`, which has a range; neither is changed."""
        super().__init__()
        self.grid = quantizer.grid
        scale = quantizer.scale.detach().clone()
        self.weight = nn.Parameter(weight.detach() / scale)
        self.register_buffer("first", scale.clone())
        self.register_buffer("zero_point", quantizer.zero_point.detach().clone())
        self.register_buffer("smallest", smallest_step(scale), persistent=False)
        if learn_step:
            self.scale = nn.Parameter(scale)
        else:
            self.register_buffer("scale", scale)

    def learned(self) -> list[nn.Parameter]:
        """What is learned beside the step."""
        return [self.weight]

    def forward(self, weight: Tensor) -> Tensor:
        """The rounded weight; the argument is not looked at."""
        del weight
        return fake_quantize(self.weight * self.first, self.step(), self.zero_point, self.grid)

    def step(self) -> Tensor:
        """The step size, kept positive."""
        return self.scale.clamp(min=self.smallest)

    def hard(self) -> Tensor:
        """The weight as it is used, exactly on the grid; no gradient."""
        with torch.no_grad():
            return self(self.weight)
