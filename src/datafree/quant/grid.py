"""Integer grids, and rounding onto them with a straight-through gradient (algorithms B.1).

A grid is a range of integer codes; a scale and a zero point map codes to real values,
``value = scale * (code - zero_point)``. Scale and zero point are tensors: scalar for a whole
tensor, or one entry per output channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from datafree.tensors import inner_product

Ste = Literal["clipped", "clip_first", "full"]

EMPTY_SCALE = 1e-8
"""Scale of a range of no width, which any would do for."""
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny
# Codes are limited at both ends, so that a range may fall short of float32's by a little: its
# outermost codes must not be infinite.
_LARGEST = 0.98 * torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Grid:
    """The integer codes of one quantizer.

    Attributes:
        bits: width, 2 to 8.
        symmetric: zero point fixed at 0 and codes centred on it.
        signed: for symmetric grids, whether codes reach below zero; affine grids are always
            unsigned.
        narrow: for signed symmetric grids, whether the smallest code, which has no mirror image, is
            left out.
        even: for affine grids, whether the zero point is an even number: runtimes that add it
            before they round compute the same then.
        power_of_two: whether scales are powers of two.
    """

    bits: int
    symmetric: bool = False
    signed: bool = True
    narrow: bool = False
    even: bool = False
    power_of_two: bool = False

    @property
    def qmin(self) -> int:
        """Smallest code: ``-2^(b-1)`` for a signed symmetric grid, otherwise 0."""
        return self.qmax - 2**self.bits + 1 + self.narrow if self.symmetric and self.signed else 0

    @property
    def qmax(self) -> int:
        """Largest code: ``2^(b-1) - 1`` for a signed symmetric grid, otherwise ``2^b - 1``."""
        return 2 ** (self.bits - 1 if self.symmetric and self.signed else self.bits) - 1

    def parameters(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point that cover the range ``[low, high]``.

        The range is widened to hold 0, so that zero (padding, ReLU's output) is exact. Affine:
        ``s = (high - low) / (2^b - 1)``, ``z = round(-low / s)``. Symmetric: ``s = T / qmax`` with
        ``T = max(|low|, |high|)`` (``high`` where codes are unsigned), ``z = 0``. A range of no
        width has the scale 1e-8. Every scale is a normal number and every code stands for a finite
        one, whatever the range: ends beyond float32 count as its largest numbers.

        Args:
            low: lower ends, any shape.
            high: upper ends, same shape.

        Returns:
            Scale (float32, positive) and zero point (float32 holding integers in ``[qmin, qmax]``),
            both of the shape of `low`.
        """
        low = low.float().clamp(min=-_LARGEST, max=0)
        high = high.float().clamp(min=0, max=_LARGEST)
        if self.symmetric:
            reach = torch.maximum(-low, high) if self.signed else high
            most = _LARGEST / max(-self.qmin, self.qmax)
            scale = self._normal((reach / self.qmax).clamp(max=most))
            return scale, torch.zeros_like(scale)
        width = high - low
        # Of opposite numbers near the end of float32 the difference lies beyond it.
        step = torch.where(width.isinf(), high / self.qmax - low / self.qmax, width / self.qmax)
        scale = self._normal(step)
        return scale, self.rounded_zero_point(-low / scale)

    def _normal(self, scale: Tensor) -> Tensor:
        """`scale` as a normal number that this grid may have; that of no width where it is 0."""
        scale = torch.where(scale == 0, EMPTY_SCALE, scale.clamp(min=_SMALLEST_SCALE))
        rounded = self.rounded_scale(scale)
        beyond = (rounded * max(-self.qmin, self.qmax)).isinf() & self.power_of_two
        return torch.where(beyond, rounded / 2, rounded)

    def rounded_scale(self, scale: Tensor) -> Tensor:
        """`scale` itself, or the next power of two, up to ``2^127``."""
        if not self.power_of_two:
            return scale
        return torch.exp2(torch.ceil(torch.log2(scale)).clamp(max=127))

    def rounded_zero_point(self, zero_point: Tensor) -> Tensor:
        """`zero_point` as a code of this grid, an even one where they have to be."""
        if not self.even:
            return torch.round(zero_point).clamp(self.qmin, self.qmax)
        return (2 * torch.round(zero_point / 2)).clamp(self.qmin, self.qmax - 1)


def smallest_step(start: Tensor) -> Tensor:
    """What a step that is learned from `start` on must not fall below, of the same shape.

    It is 1e-8, and a thousandth of a `start` that is tiny itself.
    """
    return (start.detach() / 1000).clamp(min=_SMALLEST_SCALE, max=EMPTY_SCALE)


def learned_ste(asked: Ste) -> Ste:
    """The gradient of a quantizer whose step is learned: one that reaches the step."""
    return "clipped" if asked == "full" else asked


def codes(values: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
    """Integer codes of `values`: ``clip(round(values / scale) + zero_point, qmin, qmax)``.

    Rounding is half to even, as ONNX QuantizeLinear prescribes.

    Args:
        values: any shape.
        scale: broadcastable to `values`.
        zero_point: broadcastable to `values`.
        grid: limits of the codes.

    Returns:
        Codes as a float tensor of the shape of `values`.
    """
    return torch.div(values, scale).round_().add_(zero_point).clamp_(grid.qmin, grid.qmax)


def fake_quantize(
    values: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid, ste: Ste = "clipped"
) -> Tensor:
    """`values` rounded onto the grid and mapped back to real numbers.

    Gradient (straight-through): rounding counts as the identity. With ``ste="clipped"`` clipped
    values pass no gradient, and the gradient to `scale` is that of learned step sizes (the code
    minus the value over the scale inside, the clipped code outside); ``"clip_first"`` is the same,
    but values within half a step beyond the outermost codes, which are rounded to these, count as
    clipped, as LSQ's equations and the code of Genie and DFQF have it; with ``"full"`` every value
    passes its gradient (GDFQ family) and `scale` receives none.

    Args:
        values: any shape, float32.
        scale: positive, broadcastable to `values`.
        zero_point: integers, broadcastable to `values`.
        grid: limits of the codes.
        ste: see above.

    Returns:
        Tensor of the shape of `values`.
    """
    low, high = grid.qmin - zero_point, grid.qmax - zero_point
    if not torch.is_grad_enabled() or not (values.requires_grad or scale.requires_grad):
        return _rounded(values, scale, low, high)
    if ste == "full":
        return cast("Tensor", _Full.apply(values, scale, low, high))
    return cast("Tensor", _Clipped.apply(values, scale, low, high, ste == "clip_first"))


def _rounded(values: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    rounded = torch.div(values, scale).round_()
    return _limited(rounded, low, high, out=rounded).mul_(scale)


def _limited(values: Tensor, low: Tensor, high: Tensor, out: Tensor | None = None) -> Tensor:
    """`values` cut at `low` and `high`, perhaps in place; `clamp` by tensors takes longer."""
    limited = torch.minimum(values, high, out=out)
    return torch.maximum(limited, low, out=limited)


class _Full(torch.autograd.Function):
    """Rounding that passes every gradient: to the last bit what rounds without gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Codes are limited to ``[low, high]`` around 0."""
        del ctx
        return _rounded(values, scale, low, high)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch calls it by position
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor, None, None, None]:
        """Straight through; none for the step."""
        del ctx
        return grad_outputs[0], None, None, None


class _Clipped(torch.autograd.Function):
    """Rounding with clipped straight-through gradients, in half the passes that autograd takes."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, scale: Tensor, low: Tensor, high: Tensor, clip_first: bool
    ) -> Tensor:
        """Codes are limited to ``[low, high]`` around 0."""
        if not ctx.needs_input_grad[1] and not clip_first:
            rounded = torch.div(values, scale).round_()
            codes = _limited(rounded, low, high)
            ctx.save_for_backward(None, torch.eq(codes, rounded, out=rounded), scale)
            return codes.mul_(scale)
        codes, slope, inside = round_and_slope(values, scale, low, high, clip_first=clip_first)
        ctx.save_for_backward(slope, inside, scale)
        return codes.mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch calls it by position
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        """Straight through inside the range; the slope of LSQ for the step."""
        slope, inside, scale = ctx.saved_tensors
        (gradient,) = grad_outputs
        to_values = gradient * inside if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return to_values, None, None, None, None
        if scale.numel() == 1:
            return to_values, inner_product(gradient, slope).view(scale.shape), None, None, None
        return to_values, (gradient * slope).sum_to_size(scale.shape), None, None, None


def round_and_slope(
    values: Tensor, scale: Tensor, low: Tensor, high: Tensor, *, clip_first: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, what the step's gradient is multiplied with, and where values are within the range.

    Args:
        values: any shape.
        scale: broadcastable to `values`.
        low: smallest code, counted from the zero point.
        high: largest code, likewise.
        clip_first: values are within the range up to the outermost codes; otherwise up to half a
            step beyond, where they are rounded to these.

    Returns:
        Codes around 0; ``code - values / scale`` inside the range and the code outside; 1.0 inside
        and 0.0 outside. All of the shape of `values`.
    """
    ratio = values / scale
    rounded = torch.round(ratio)
    limited = _limited(rounded, low, high)
    # As floats from the start: masks of booleans are slow to multiply with, and to choose by.
    inside = torch.empty_like(rounded)
    if clip_first:
        torch.eq(_limited(ratio, low, high), ratio, out=inside)
    else:
        torch.eq(limited, rounded, out=inside)
    return limited, torch.addcmul(limited, ratio, inside, value=-1), inside
