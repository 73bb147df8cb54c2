"""Quantizers while they are learned: soft rounding of weights, learned steps of activations."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from datafree.quant.grid import Ste, fake_quantize, learned_ste, round_and_slope, smallest_step
from datafree.quant.modules import ActivationQuantizer, Quantizer
from datafree.tensors import inner_product

_STRETCH_LOW, _STRETCH_HIGH = -0.1, 1.1
_SETTLED = 0.05  # steps
_LEAST_FACTOR = 1e-3
_LOWEST = -80.0  # logarithm of powers: below, numbers are no normal ones
_TINY = 1e-30  # whose logarithm times 0 is a number


class SoftRounding(nn.Module):
    """AdaRound's weight quantizer: every weight learns whether to round down or up (B.5).

    ``w = s (clip(floor(W/s) + h(V) + z, qmin, qmax) - z)`` with the stretched sigmoid ``h(V) =
    clip(1.2 sigmoid(V) - 0.1, 0, 1)``. V starts where the float weight is reproduced. The base
    integers ``floor(W/s)`` stay those of the first step size, so with a learned step ``d w / d s``
    is the integer code minus the zero point (Genie-M, B.8).

    Attributes:
        logits: V, the shape of the weight.
        scale: s, or s / `unit`, a parameter if the step is learned, broadcastable to the weight.
    """

    base: Tensor
    zero_point: Tensor
    scale: Tensor
    smallest: Tensor

    def __init__(
        self,
        weight: Tensor,
        quantizer: Quantizer,
        *,
        learn_step: bool = False,
        unit: Tensor | None = None,
    ) -> None:
        """Start from `weight` on the grid of `quantizer`, which has a range; neither is changed.

        Args:
            weight: of a layer.
            quantizer: of that weight.
            learn_step: whether its step size is a parameter.
            unit: positive, broadcastable to the step size: what the parameter is counted in, so
                that one rate moves step sizes in proportion to it; None is 1.
        """
        super().__init__()
        self.grid = quantizer.grid
        scale = quantizer.scale.detach().clone()
        ratio = weight.detach() / scale
        base = torch.floor(ratio)
        self.logits = nn.Parameter(rounding_logits(ratio - base))
        self.register_buffer("base", base + quantizer.zero_point)
        self.register_buffer("zero_point", quantizer.zero_point.detach().clone())
        self.register_buffer("smallest", smallest_step(scale), persistent=False)
        self.unit = unit if learn_step else None
        if learn_step:
            self.scale = nn.Parameter(scale if unit is None else scale / unit)
        else:
            self.register_buffer("scale", scale)

    def learned(self) -> list[nn.Parameter]:
        """What is learned beside the step."""
        return [self.logits]

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
        powers = cast("Tensor", _SumOfPowers.apply(2 * self.shares() - 1, beta))
        return self.logits.numel() - powers

    def undecided(self) -> int:
        """How many weights are more than a twentieth of a step away from both down and up."""
        with torch.no_grad():
            return int(((self.shares() - 0.5).abs() < 0.5 - _SETTLED).sum())

    def step(self) -> Tensor:
        """The step size, kept positive."""
        scale = self.scale if self.unit is None else self.scale * self.unit
        return scale.clamp(min=self.smallest)

    def hard(self) -> Tensor:
        """The weight with every choice made, ``V >= 0`` up: exactly on the grid, no gradient."""
        with torch.no_grad():
            return self._values((self.logits >= 0).float())

    def _values(self, shares: Tensor) -> Tensor:
        codes = (self.base + shares).clamp(self.grid.qmin, self.grid.qmax)
        return (codes - self.zero_point) * self.step()


class ScaledCodes(nn.Module):
    """A weight quantizer whose integer codes stay, while its step size learns.

    ``w = f s_0 (code - z)`` with the first step s_0, so that one rate moves all steps alike.

    Attributes:
        factor: f, a parameter of the shape of the step; 1 at first.
    """

    whole: Tensor
    first: Tensor

    def __init__(self, weight: Tensor, quantizer: Quantizer) -> None:
        """Start from `weight`, which lies on the grid of `quantizer`; neither is changed."""
        super().__init__()
        first = quantizer.scale.detach().clone()
        codes = quantizer.codes(weight.detach()) - quantizer.zero_point
        self.register_buffer("whole", codes)
        self.register_buffer("first", first)
        self.factor = nn.Parameter(torch.ones_like(first))

    def step(self) -> Tensor:
        """The step size, kept positive."""
        return self.first * self.factor.clamp(min=_LEAST_FACTOR)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the codes stand for now; the argument is not looked at."""
        del weight
        return self.whole * self.step()

    def hard(self) -> Tensor:
        """The same without a gradient."""
        with torch.no_grad():
            return self(self.whole)


class _SumOfPowers(torch.autograd.Function):
    """``sum |x|^beta``, without `pow`, which is slow and slower still where powers are tiny."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, beta: float) -> Tensor:
        """`values` within [-1, 1]."""
        logarithms = values.abs().clamp_(min=_TINY).log_()
        ctx.save_for_backward(values, logarithms)
        ctx.beta = beta
        return (logarithms * beta).clamp_(min=_LOWEST).exp_().sum()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch calls it by position
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor, None]:
        """``beta sign(x) |x|^(beta - 1)``."""
        values, logarithms = ctx.saved_tensors
        slopes = (logarithms * (ctx.beta - 1)).clamp_(min=_LOWEST).exp_()
        return slopes.copysign_(values).mul_(grad_outputs[0] * ctx.beta), None


class LearnedStep(nn.Module):
    """An activation quantizer whose step size is learned, optionally on part of the elements.

    Gradient of the step as in LSQ (B.9). With ``drop = p`` every element stays float with
    probability p (QDrop, B.7).

    Attributes:
        scale: the step, a scalar parameter.
    """

    zero_point: Tensor
    smallest: Tensor

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
        self.register_buffer("smallest", smallest_step(self.scale), persistent=False)
        self.drop = drop
        self.generator = generator
        self.ste: Ste = learned_ste(quantizer.ste)

    def step(self) -> Tensor:
        """The step size, kept positive."""
        return self.scale.clamp(min=self.smallest)

    def forward(self, values: Tensor) -> Tensor:
        """`values` on the grid, or part of them."""
        if not self.drop:
            return fake_quantize(values, self.step(), self.zero_point, self.grid, self.ste)
        kept = chosen(values, 1 - self.drop, self.generator)
        low, high = self.grid.qmin - self.zero_point, self.grid.qmax - self.zero_point
        first = self.ste == "clip_first"
        return cast("Tensor", _PartlyQuantized.apply(values, self.step(), low, high, kept, first))


class _PartlyQuantized(torch.autograd.Function):
    """`fake_quantize` where chosen, the identity elsewhere, in half the passes over memory."""

    @staticmethod
    def forward(  # noqa: PLR0913 - torch passes them by position
        ctx: Any,
        values: Tensor,
        scale: Tensor,
        low: Tensor,
        high: Tensor,
        kept: Tensor,
        clip_first: bool,
    ) -> Tensor:
        """Codes are limited to ``[low, high]`` around 0; values are rounded where `kept`."""
        codes, slope, inside = round_and_slope(values, scale, low, high, clip_first=clip_first)
        stopped = inside.sub_(1).mul_(kept)  # -1 where rounded and outside of the range
        ctx.save_for_backward(slope.mul_(kept), stopped)
        return torch.lerp(values, codes.mul_(scale), kept)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch calls it by position
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor, None, None, None, None]:
        """Straight through inside the range; the slope of LSQ for the step."""
        slope, stopped = ctx.saved_tensors
        (gradient,) = grad_outputs
        needed = ctx.needs_input_grad[0]
        to_values = torch.addcmul(gradient, gradient, stopped) if needed else None
        return to_values, inner_product(gradient, slope), None, None, None, None


def mix(quantized: Tensor, exact: Tensor, drop: float, generator: torch.Generator) -> Tensor:
    """Elements of `exact` with probability `drop`, elsewhere those of `quantized` (same shape)."""
    if not drop:
        return quantized
    return torch.lerp(exact, quantized, chosen(quantized, 1 - drop, generator))


def chosen(like: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A mask of the shape and memory layout of `like`, 1.0 with probability `share`, else 0.0.

    `bernoulli_` takes ten times as long on a CPU. Elements share a random number of 64 bits: eight
    where the probability is a multiple of 2^-8, else four, and it is rounded to one of 2^-16.

    Args:
        like: dense.
        share: 0 to 1.
        generator: on the device of `like`.
    """
    count = like.numel()
    bits, kind = (8, torch.int8) if (share * 2**8).is_integer() else (16, torch.int16)
    words = torch.empty(-(-count * bits // 64), dtype=torch.int64, device=like.device)
    parts = words.random_(-(2**63), None, generator=generator).view(kind)[:count]
    mask = torch.ones(count, device=like.device)
    if share < 1:
        torch.lt(parts, round(share * 2**bits) - 2 ** (bits - 1), out=mask)
    return mask.as_strided(like.shape, torch.empty_like(like, device="meta").stride())


def rounding_logits(remainders: Tensor) -> Tensor:
    """V with ``h(V) = remainders``, which lie in [0, 1): ``-ln(1.2 / (r + 0.1) - 1)``."""
    width = _STRETCH_HIGH - _STRETCH_LOW
    return -torch.log(width / (remainders - _STRETCH_LOW) - 1)
