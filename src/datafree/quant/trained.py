"""Quantizers of a student that is fine-tuned: learned steps, clips and ranges (algorithms B.9)."""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from datafree.quant.grid import Ste, fake_quantize, learned_ste, smallest_step
from datafree.quant.modules import Quantizer


class LSQ(nn.Module):
    """A quantizer whose step is learned (LSQ), or its clip ``A = step * qmax`` (DFQF).

    Values pass a clipped straight-through gradient. ``d v / d step`` is the code minus ``v / step``
    inside the range and the clipped code outside, counted from the zero point, which stays fixed;
    that of the clip is ``1 / qmax`` of it. With `scaled` the gradient of what is learned is
    multiplied by ``1 / sqrt(N qmax)`` (Esser et al., ICLR 2020); DFQF does without.

    Steps stay above `datafree.quant.grid.smallest_step` by projection: every use first raises what
    the optimizer left below. Clamping it in the computation instead would give a lost step no
    gradient to return by.

    Attributes:
        scale: the step, a parameter with ``learn="step"``; scalar, or broadcastable to the values.
        clip: the parameter with ``learn="clip"``, of the same shape.
    """

    scale: nn.Parameter
    clip: nn.Parameter
    zero_point: Tensor
    smallest: Tensor

    def __init__(
        self,
        quantizer: Quantizer,
        *,
        learn: Literal["step", "clip"] = "step",
        scaled: bool = True,
        activation: bool = False,
        elements: int | None = None,
    ) -> None:
        """Start from the range of `quantizer`, which is not changed.

        Args:
            quantizer: with a range.
            learn: the step or the clip.
            scaled: whether its gradient is scaled.
            activation: values are a batch: N counts the features of one image. Otherwise N counts
                the values that share a step.
            elements: N, instead of what `activation` says.

        Raises:
            ValueError: `quantizer` has no range.
        """
        super().__init__()
        _need_range(quantizer)
        self.grid = quantizer.grid
        self.learn: Literal["step", "clip"] = learn
        self.scaled = scaled
        self.activation = activation
        self.elements = elements
        self.ste: Ste = learned_ste(quantizer.ste)
        start = quantizer.scale.detach().clone()
        if learn == "clip":
            self.clip = nn.Parameter(start * self.grid.qmax)
        else:
            self.scale = nn.Parameter(start)
        self.register_buffer("smallest", smallest_step(start), persistent=False)
        self.register_buffer("zero_point", quantizer.zero_point.detach().clone())

    @property
    def learned(self) -> nn.Parameter:
        """The parameter: `scale` or `clip`."""
        return self.clip if self.learn == "clip" else self.scale

    def step(self) -> Tensor:
        """The step, positive; its gradient is not scaled."""
        return self._step(1.0)

    def forward(self, values: Tensor) -> Tensor:
        """`values` on the grid, same shape."""
        factor = 1.0
        if self.scaled:
            factor = 1 / math.sqrt(self._elements(values) * self.grid.qmax)
        return fake_quantize(values, self._step(factor), self.zero_point, self.grid, self.ste)

    def settle(self, quantizer: Quantizer, weight: Tensor | None = None) -> None:
        """Give `quantizer`, of the same grid, the learned step; `weight` is not looked at."""
        del weight
        quantizer.scale = self.step().detach().clone()
        quantizer.zero_point = self.zero_point.clone()

    def _step(self, factor: float) -> Tensor:
        learned = self.learned
        divisor = self.grid.qmax if self.learn == "clip" else 1
        _keep_above(learned, self.smallest * divisor)
        return cast("Tensor", _ScaledGradient.apply(learned, factor)) / divisor

    def _elements(self, values: Tensor) -> int:
        if self.elements is not None:
            return self.elements
        shares = values.shape[0] if self.activation else self.learned.numel()
        return max(values.numel() // max(shares, 1), 1)


class FollowedRange(Quantizer):
    """A weight quantizer whose range follows the weight: min-max at every pass (GDFQ, C.1).

    Every weight passes its gradient, also the extremes; the range takes none.
    """

    def __init__(self, quantizer: Quantizer) -> None:
        """Take grid and axis of `quantizer`, which is not changed and needs no range."""
        super().__init__(quantizer.grid, axis=quantizer.axis, ste="full")
        # A saved state is loaded into buffers of the shape the range will have.
        self.scale, self.zero_point = quantizer.scale.clone(), quantizer.zero_point.clone()

    def forward(self, values: Tensor) -> Tensor:
        """The weight on the grid that covers it, same shape."""
        self.fit(values.detach())
        return super().forward(values)

    def settle(self, quantizer: Quantizer, weight: Tensor | None = None) -> None:
        """Give `quantizer`, of the same grid, the range of `weight`.

        Raises:
            ValueError: no weight; the last range is older than the last step of the optimizer.
        """
        if weight is None:
            raise ValueError("a range that follows the weight needs the weight")
        self.fit(weight.detach())
        quantizer.scale, quantizer.zero_point = self.scale.clone(), self.zero_point.clone()


class PACT(nn.Module):
    """An activation quantizer that learns where it clips (Choi et al., 2018).

    ``y = clip(x, 0, alpha)`` in ``2^b - 1`` steps, ``d y / d alpha = [x >= alpha]``, ``d y / d x =
    [0 <= x < alpha]``. `alpha` stays positive as the step of `LSQ` does.

    Attributes:
        alpha: the parameter, a scalar.
    """

    smallest: Tensor

    def __init__(self, quantizer: Quantizer, *, alpha0: float | None = None) -> None:
        """Start from the range of `quantizer`, which is not changed.

        Args:
            quantizer: with a range whose zero point is 0, on a grid without negative codes.
            alpha0: where alpha starts instead, 10 in the paper.

        Raises:
            ValueError: `quantizer` is of another kind or has no range, or alpha0 is not positive.
        """
        super().__init__()
        _need_range(quantizer)
        if not never_negative(quantizer):
            raise ValueError("PACT needs a grid from 0 up: unsigned codes, zero point 0")
        if alpha0 is not None and alpha0 <= 0:
            raise ValueError(f"alpha0 must be positive, got {alpha0}")
        self.grid = quantizer.grid
        start = quantizer.scale.detach() * self.grid.qmax
        smallest = smallest_step(quantizer.scale)
        self.register_buffer("smallest", smallest, persistent=False)
        self.alpha = nn.Parameter(start if alpha0 is None else torch.full_like(start, alpha0))

    @property
    def learned(self) -> nn.Parameter:
        """The parameter: `alpha`."""
        return self.alpha

    def decay(self) -> Tensor:
        """``alpha^2``, summed: what weight decay adds to the loss, times its weight."""
        return self.alpha.square().sum()

    def step(self) -> Tensor:
        """``alpha / (2^b - 1)``, positive."""
        _keep_above(self.alpha, self.smallest * self.grid.qmax)
        return self.alpha / self.grid.qmax

    def forward(self, values: Tensor) -> Tensor:
        """`values` on the grid, same shape."""
        step = self.step().detach()
        rounded = fake_quantize(values.detach(), step, torch.zeros_like(step), self.grid)
        return cast("Tensor", _Clip.apply(values, self.alpha, rounded))

    def settle(self, quantizer: Quantizer, weight: Tensor | None = None) -> None:
        """Give `quantizer`, of the same grid, the range up to alpha; `weight` is not looked at."""
        del weight
        quantizer.scale = self.step().detach().clone()
        quantizer.zero_point = torch.zeros_like(quantizer.scale)


Trained = LSQ | FollowedRange | PACT
TRAINED = (LSQ, FollowedRange, PACT)


def _need_range(quantizer: Quantizer) -> None:
    if not quantizer.has_range:
        raise ValueError("the quantizer has no range to start from: calibrate first")


def never_negative(quantizer: Quantizer) -> bool:
    """Whether the lowest code stands for 0: no zero point, as PACT needs it."""
    return quantizer.grid.qmin == 0 and not bool(quantizer.zero_point.any())


def _keep_above(parameter: nn.Parameter, smallest: Tensor) -> None:
    # Through .data: autograd would refuse a parameter that is changed between two uses in one
    # forward pass, even by a change to itself.
    parameter.data.clamp_(min=smallest)


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        """`values`, a tensor of its own."""
        ctx.factor = factor
        return values.clone()

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch calls it by position
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor, None]:
        """Times the factor."""
        return grad_outputs[0] * ctx.factor, None


class _Clip(torch.autograd.Function):
    """PACT's gradients for values that were rounded already."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, alpha: Tensor, rounded: Tensor) -> Tensor:
        """`rounded`, a tensor of its own."""
        above = values >= alpha
        ctx.save_for_backward(above, (values >= 0) & ~above, alpha)
        return rounded.clone()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch calls it by position
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        """To the value inside, to alpha from there up."""
        above, inside, alpha = ctx.saved_tensors
        (gradient,) = grad_outputs
        return gradient * inside, (gradient * above).sum_to_size(alpha.shape), None
