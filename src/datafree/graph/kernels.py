"""Convolutions as plain numbers: what parallel ones, diagonals and averages are as one (RepVGG).

Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021, section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Kernel:
    """A convolution with zero padding.

    ``y[p] = bias + sum over k of weight[k] x[stride p + dilation k - padding]``, positions and taps
    having as many dimensions as the image.

    Attributes:
        weight: (O, I / groups, taps …), float64.
        bias: (O,), float64.
        groups: into which input and output channels are divided.
        stride: by dimension of the image, as the two below.
        padding: zeros on either side.
        dilation: distance of neighbouring taps.
    """

    weight: Tensor
    bias: Tensor
    groups: int
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def taps(self) -> tuple[int, ...]:
        """Taps by dimension of the image."""
        return tuple(self.weight.shape[2:])

    @property
    def inputs(self) -> int:
        """Channels it reads."""
        return self.groups * self.weight.shape[1]

    @property
    def span(self) -> tuple[int, ...]:
        """Distance from the first tap to the last."""
        return tuple(d * (k - 1) for d, k in zip(self.dilation, self.taps, strict=True))

    @property
    def excess(self) -> tuple[int, ...]:
        """By how much padding exceeds what keeps the size: ``2 padding - span``.

        Two kernels of the same stride write pictures of the same size from pictures of every size,
        with their middles at the same places, if and only if this agrees.
        """
        return tuple(2 * p - s for p, s in zip(self.padding, self.span, strict=True))

    def scaled(self, factor: Tensor) -> Kernel:
        """``factor y``; `factor` is a scalar, or (O,)."""
        rows = factor.expand(len(self.bias)).view(-1, *[1] * (self.weight.ndim - 1))
        return replace(self, weight=self.weight * rows, bias=self.bias * factor)

    def repeated(self, channels: int, device: torch.device) -> Kernel:
        """The kernel of one channel for each of so many, on `device`."""
        weight = self.weight.to(device).expand(channels, *self.weight.shape[1:])
        return replace(
            self, weight=weight, bias=self.bias.to(device).expand(channels), groups=channels
        )

    def filled(self, factor: Tensor) -> Kernel:
        """A kernel of this form with `factor`, a scalar or (O,), for every weight; without bias."""
        rows = factor.to(self.weight.device).expand(len(self.bias))
        weight = rows.view(-1, *[1] * (self.weight.ndim - 1)).expand(self.weight.shape)
        return replace(self, weight=weight, bias=torch.zeros_like(self.bias))

    def nothing(self) -> Kernel:
        """A kernel of this form that is zero everywhere."""
        return self.filled(torch.zeros((), dtype=torch.float64))


def of_convolution(layer: Convolution) -> Kernel | None:
    """The kernel of `layer`; None where its padding is not the same on both sides."""
    padding = _padding(layer)
    if padding is None or layer.padding_mode != "zeros":
        return None
    weight = layer.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double()
    return Kernel(weight, bias, layer.groups, layer.stride, padding, layer.dilation)


def diagonal(factor: Tensor, dimensions: int) -> Kernel:
    """``factor x`` channel by channel, (C,), on images of so many dimensions."""
    ones = (1,) * dimensions
    weight = factor.double().view(-1, 1, *ones)
    return Kernel(weight, torch.zeros_like(weight.flatten()), len(factor), ones, (0,) * dimensions,
                  ones)  # fmt: skip


def pooling(
    taps: Sequence[int], stride: Sequence[int], padding: Sequence[int], divisor: int
) -> Kernel:
    """Average pooling of one channel that counts padded zeros: ``sum over window of x / divisor``.

    Pooling that divides by less at the border is no convolution.
    """
    weight = torch.full((1, 1, *taps), 1 / divisor, dtype=torch.float64)
    return Kernel(weight, weight.new_zeros(1), 1, tuple(stride), tuple(padding), (1,) * len(taps))


def sum_shape(one: Kernel, two: Kernel) -> tuple[int, ...] | None:
    """The shape of the weight of `added`, or None where two kernels are no kernel of theirs."""
    if (len(one.bias), one.inputs, one.stride) != (len(two.bias), two.inputs, two.stride):
        return None
    if one.excess != two.excess:
        return None
    taps: list[int] = []
    for k1, d1, k2, d2 in zip(one.taps, one.dilation, two.taps, two.dilation, strict=True):
        if k1 > 1 and k2 > 1 and d1 != d2:
            return None
        d = d1 if k1 > 1 else d2
        # The excess agrees, so spans differ by an even number, half of it on either side.
        if abs(d1 * (k1 - 1) - d2 * (k2 - 1)) // 2 % d:
            return None
        taps.append(max(k1, k2))
    return (len(one.bias), one.inputs // math.gcd(one.groups, two.groups), *taps)


def added(one: Kernel, two: Kernel) -> Kernel | None:
    """The kernel that computes the sum of both, exactly, at every border too.

    Channels are grouped by the greatest common divisor of both groupings, and the smaller kernel
    is padded with zeros: taps that were not there read with weight 0 what, or where, they may.

    Returns:
        None if sizes or places of outputs differ, or taps lie on grids of different steps.
    """
    shape = sum_shape(one, two)
    if shape is None:
        return None
    groups, taps = math.gcd(one.groups, two.groups), shape[2:]
    weight = sum(
        (_centred(_regrouped(k.weight, k.groups, groups), taps) for k in (one, two)),
        torch.zeros(shape, dtype=torch.float64, device=one.weight.device),
    )
    longer = [one if k1 >= k2 else two for k1, k2 in zip(one.taps, two.taps, strict=True)]
    dilation = tuple(kernel.dilation[at] for at, kernel in enumerate(longer))
    padding = tuple(kernel.padding[at] for at, kernel in enumerate(longer))
    return Kernel(weight, one.bias + two.bias, groups, one.stride, padding, dilation)


def to_layer(kernel: Kernel, like: Convolution) -> Convolution:
    """A layer of the kind and numbers of `like` that computes `kernel`."""
    kind: type[Any] = type(like)  # sizes of any number of dimensions are none of the stubs'
    layer = kind(
        kernel.inputs, len(kernel.bias), kernel.taps, kernel.stride, kernel.padding,
        kernel.dilation, kernel.groups, device="meta",
    )  # fmt: skip
    for name, values in (("weight", kernel.weight), ("bias", kernel.bias)):
        setattr(layer, name, nn.Parameter(values.to(like.weight), requires_grad=False))
    # A layer whose path is also that of a module with parts of its own keeps these.
    for kept in ("_modules", "_parameters", "_buffers"):
        layer.__dict__[kept] = like.__dict__[kept] | layer.__dict__[kept]
    return layer.train(like.training)


def _padding(layer: Convolution) -> tuple[int, ...] | None:
    if not isinstance(layer.padding, str):
        return tuple(int(side) for side in layer.padding)
    if layer.padding == "valid":
        return (0,) * len(layer.kernel_size)
    spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    return None if any(span % 2 for span in spans) else tuple(span // 2 for span in spans)


def _regrouped(weight: Tensor, groups: int, wanted: int) -> Tensor:
    """The weight of the same function with fewer groups: blocks of zeros between the old ones."""
    parts, taps = groups // wanted, weight.shape[2:]
    if parts == 1:
        return weight
    blocks = weight.view(wanted, parts, len(weight) // groups, weight.shape[1], *taps)
    spread = weight.new_zeros(wanted, parts, blocks.shape[2], parts, blocks.shape[3], *taps)
    spread.diagonal(dim1=1, dim2=3).copy_(blocks.movedim(1, -1))
    return spread.view(len(weight), parts * weight.shape[1], *taps)


def _centred(weight: Tensor, taps: Sequence[int]) -> Tensor:
    """`weight` in the middle of so many taps, zeros around it."""
    sides = [(wide - own) // 2 for wide, own in zip(taps, weight.shape[2:], strict=True)]
    return nn.functional.pad(weight, [side for side in reversed(sides) for _ in range(2)])
