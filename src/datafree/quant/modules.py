"""Modules that compute what integers would: fake quantizers, and layers with quantized weights."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.quant.grid import Grid, Ste, codes, fake_quantize

QuantizableLayer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
QUANTIZABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class Quantizer(nn.Module):
    """Rounds a tensor onto an integer grid whose range is set from outside.

    While `enabled` is False values pass unchanged; without a range they become NaN.

    Attributes:
        grid: the integer codes.
        axis: dimension that has one scale per entry, or None for one scale in all.
        ste: gradient of rounding, see `datafree.quant.grid.fake_quantize`.
        enabled: False lets float values through.
        scale: buffer, scalar or broadcastable along `axis`.
        zero_point: buffer of the same shape.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, grid: Grid, *, axis: int | None = None, ste: Ste = "clipped") -> None:
        """Create a quantizer without a range; see the class for the arguments."""
        super().__init__()
        self.grid = grid
        self.axis = axis
        self.ste: Ste = ste
        self.enabled = True
        self.register_buffer("scale", torch.tensor(math.nan))
        self.register_buffer("zero_point", torch.tensor(0.0))

    @property
    def has_range(self) -> bool:
        """Whether every scale is known: all were, or none, when `set_range` was called."""
        return not bool(torch.isnan(self.scale).any())

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Cover the range ``[low, high]``: scalars, or broadcastable to the values."""
        scale, zero_point = self.grid.parameters(low, high)
        self.scale, self.zero_point = scale.to(self.scale.device), zero_point.to(self.scale.device)

    def fit(self, values: Tensor) -> None:
        """Cover the extremes of `values`, per entry of `axis` or over all: the min-max rule."""
        if self.axis is None:
            self.set_range(values.min(), values.max())
            return
        others = [dim for dim in range(values.ndim) if dim != self.axis]
        self.set_range(values.amin(others, keepdim=True), values.amax(others, keepdim=True))

    def codes(self, values: Tensor) -> Tensor:
        """Integer codes of `values` as a float tensor of the same shape."""
        return codes(values, self.scale, self.zero_point, self.grid)

    def forward(self, values: Tensor) -> Tensor:
        """`values` on the grid, same shape."""
        if not self.enabled:
            return values
        return fake_quantize(values, self.scale, self.zero_point, self.grid, self.ste)

    def extra_repr(self) -> str:
        """Bits and codes, for printing a student."""
        kind = "symmetric" if self.grid.symmetric else "affine"
        return f"{self.grid.bits}-bit {kind}, codes {self.grid.qmin}..{self.grid.qmax}"


class ActivationQuantizer(Quantizer):
    """A quantizer of a tensor that flows through the graph; calibrators look for these.

    A range must be set before it is used while enabled.

    Attributes:
        covers: lowest and highest value the tensor is known to take, which every range is widened
            to: of the network's own input. None where only data tell. Such a range is not learned.
        widened: by what every range is multiplied: more than 1 for what the network returns, since
            answers to real images are surer than those to dreamt ones.
        fixed: scale and zero point of an operator that knows no others; no range moves them.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        ste: Ste = "clipped",
        covers: tuple[float, float] | None = None,
        widened: float = 1.0,
        fixed: tuple[float, int] | None = None,
    ) -> None:
        """Create a quantizer without a range; see the class for the arguments."""
        super().__init__(grid, ste=ste)
        self.covers, self.widened, self.fixed = covers, widened, fixed

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Cover ``[low, high]``, two scalars, and what is known."""
        if self.fixed is not None:
            self.scale, self.zero_point = (self.scale.new_tensor(float(n)) for n in self.fixed)
            return
        low, high = low * self.widened, high * self.widened
        if self.covers is not None:
            low, high = low.clamp(max=self.covers[0]), high.clamp(min=self.covers[1])
        super().set_range(low, high)


class ChannelCopies(nn.Module):
    """The channels of a tensor, some of them several times: what a split layer reads.

    Attributes:
        origin: buffer (C',), the index of the channel that each channel of the output repeats.
    """

    origin: Tensor

    def __init__(self, origin: Tensor) -> None:
        """Create it; see the class for the argument."""
        super().__init__()
        self.register_buffer("origin", origin)

    def forward(self, values: Tensor) -> Tensor:
        """(N, C', …) from (N, C, …)."""
        return values.index_select(1, self.origin)


class QuantConv1d(nn.Conv1d):
    """A 1-d convolution whose weight passes through `weight_quantizer`."""

    weight_quantizer: Quantizer

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (N, C, L) with the quantized weight."""
        return self._conv_forward(input, self.weight_quantizer(self.weight), self.bias)


class QuantConv2d(nn.Conv2d):
    """A 2-d convolution whose weight passes through `weight_quantizer`."""

    weight_quantizer: Quantizer

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (N, C, H, W) with the quantized weight."""
        return self._conv_forward(input, self.weight_quantizer(self.weight), self.bias)


class QuantConv3d(nn.Conv3d):
    """A 3-d convolution whose weight passes through `weight_quantizer`."""

    weight_quantizer: Quantizer

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (N, C, D, H, W) with the quantized weight."""
        return self._conv_forward(input, self.weight_quantizer(self.weight), self.bias)


class QuantLinear(nn.Linear):
    """A linear layer whose weight passes through `weight_quantizer`."""

    weight_quantizer: Quantizer

    def forward(self, input: Tensor) -> Tensor:
        """Multiply (…, in) with the quantized weight."""
        return F.linear(input, self.weight_quantizer(self.weight), self.bias)


def add_to_bias(layer: QuantizableLayer, change: Tensor) -> None:
    """Add `change` (C,) to the bias of `layer`, which gets one if it has none."""
    bias = change if layer.bias is None else layer.bias.detach().double() + change
    # A parameter of its own: another layer may share the old one.
    layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=False)


QuantizedLayer = QuantConv1d | QuantConv2d | QuantConv3d | QuantLinear
QUANTIZED = (QuantConv1d, QuantConv2d, QuantConv3d, QuantLinear)

_COUNTERPART: dict[type[nn.Module], type[QuantizedLayer]] = {
    nn.Conv1d: QuantConv1d,
    nn.Conv2d: QuantConv2d,
    nn.Conv3d: QuantConv3d,
    nn.Linear: QuantLinear,
}


def quantize_layer(layer: nn.Module, quantizer: Quantizer) -> QuantizedLayer:
    """The quantized counterpart of a convolution or linear layer, sharing its parameters.

    Args:
        layer: one of `QUANTIZABLE`; it is not changed.
        quantizer: of the weight; fitted to it here by min-max if it has no range yet.

    Returns:
        A layer of the same settings with the attribute `weight_quantizer`.
    """
    # Same attributes, other class: the constructor would only allocate a weight to throw away.
    quantized = copy.copy(layer)
    quantized.__class__ = _COUNTERPART[type(layer)]
    for name in ("_parameters", "_buffers", "_modules"):
        quantized.__dict__[name] = copy.copy(layer.__dict__[name])
    assert isinstance(quantized, QUANTIZED)  # noqa: S101 - the line before makes it one
    if not quantizer.has_range:
        quantizer.fit(quantized.weight.detach())
    quantized.weight_quantizer = quantizer
    return quantized
