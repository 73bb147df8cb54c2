"""Weight quantizers that always round, and learn straight through it (B.9)."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from datafree.quant.grid import fake_quantize, smallest_step
from datafree.quant.modules import Quantizer


class RoundedWeight(nn.Module):
    """Base of those that learn what is rounded: a step size, learned or not, and what it leaves.

    Attributes:
        scale: the step, a parameter if it is learned, broadcastable to the weight.
    """

    zero_point: Tensor
    scale: Tensor
    smallest: Tensor

    def __init__(self, quantizer: Quantizer, *, learn_step: bool) -> None:
        """Take grid and range of `quantizer`, which has one and is not changed."""
        super().__init__()
        self.grid = quantizer.grid
        scale = quantizer.scale.detach().clone()
        self.register_buffer("zero_point", quantizer.zero_point.detach().clone())
        self.register_buffer("smallest", smallest_step(scale), persistent=False)
        if learn_step:
            self.scale = nn.Parameter(scale)
        else:
            self.register_buffer("scale", scale)

    @abstractmethod
    def learned(self) -> list[nn.Parameter]:
        """What is learned beside the step."""

    def step(self) -> Tensor:
        """The step size, kept positive."""
        return self.scale.clamp(min=self.smallest)

    def hard(self) -> Tensor:
        """The weight as it is used, exactly on the grid; no gradient."""
        with torch.no_grad():
            return self(self.zero_point)  # which `forward` does not look at


class StraightWeight(RoundedWeight):
    """Learn the weight and its step size; the gradient passes the rounding as if it were not there.

    ``w = s (clip(round(U s_0 / s + z), qmin, qmax) - z)`` with the weight U in units of the first
    step s_0, so that one rate fits all layers. The gradient of U is straight through inside the
    grid and 0 outside; that of s is LSQ's (Esser et al., ICLR 2020).

    Attributes:
        weight: U, the shape of the weight.
        scale: s, a parameter if the step is learned, broadcastable to the weight.
    """

    first: Tensor

    def __init__(self, weight: Tensor, quantizer: Quantizer, *, learn_step: bool = False) -> None:
        """Start from `weight` on the grid of `quantizer`, which has a range; neither is changed."""
        super().__init__(quantizer, learn_step=learn_step)
        self.register_buffer("first", self.scale.detach().clone())
        self.weight = nn.Parameter(weight.detach() / self.first)

    def learned(self) -> list[nn.Parameter]:
        """The weight."""
        return [self.weight]

    def forward(self, weight: Tensor) -> Tensor:
        """The rounded weight; the argument is not looked at."""
        del weight
        return fake_quantize(self.weight * self.first, self.step(), self.zero_point, self.grid)
