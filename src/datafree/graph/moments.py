"""Mean, deviation and range of a tensor by channel, and what the steps of a network do to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from datafree.config import InputSpec
from datafree.config.inputs import Input
from datafree.losses import clipped_normal_mean

_TAIL = 8.0  # deviations up to which normals are integrated
_POINTS = 1601


@dataclass(frozen=True)
class Moments:
    """A tensor by channel (dimension 1), over images and positions; all float64.

    Attributes:
        mean: (C,), or (1,) where channels were mixed; NaN where it is not known.
        std: the same shape; NaN where it is not known.
        low: the same shape: lower end of the range; minus infinity where it is not known.
        high: the same shape: upper end; infinity where it is not known.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor

    @property
    def has_range(self) -> bool:
        """Whether both ends are known for all channels."""
        return bool(torch.isfinite(self.low).all() and torch.isfinite(self.high).all())

    def at(self, channels: Tensor) -> Moments:
        """The moments of the tensor whose channels are those at the indices `channels`."""
        return Moments(
            self.mean[channels], self.std[channels], self.low[channels], self.high[channels]
        )


def unknown(device: torch.device) -> Moments:
    """A tensor of which nothing is known."""
    nothing = torch.full((1,), math.nan, dtype=torch.float64, device=device)
    infinite = torch.full_like(nothing, math.inf)
    return Moments(nothing, nothing, -infinite, infinite)


def constant(number: float, device: torch.device) -> Moments:
    """A channel that always holds `number`."""
    value = torch.tensor([number], dtype=torch.float64, device=device)
    return Moments(value, torch.zeros_like(value), value, value)


def only_mean(mean: Tensor) -> Moments:
    """A tensor of which the mean (C,) alone is known."""
    infinite = torch.full_like(mean, math.inf)
    return Moments(mean, mean * math.nan, -infinite, infinite)


def only_range(low: Tensor, high: Tensor) -> Moments:
    """A tensor of which the range, (C,) each, alone is known."""
    nothing = torch.full_like(low, math.nan)
    return Moments(nothing, nothing, low, high)


def normal(mean: Tensor, std: Tensor, deviations: float) -> Moments:
    """Normal channels, (C,) each, with the range ``mean ± deviations * std``."""
    return Moments(mean, std, mean - deviations * std, mean + deviations * std)


def pixels(spec: InputSpec | Input, device: torch.device) -> Moments:
    """An input: pixels 0 … 255 after normalisation. Their mean is the data's secret."""
    mean, std = (torch.tensor(v, dtype=torch.float64, device=device) for v in (spec.mean, spec.std))
    return only_range(-mean / std, (1 - mean) / std)


def response(weight: Tensor, groups: int, inputs: Tensor) -> Tensor:
    """What a layer of this weight, without bias, returns of inputs constant by channel.

    Args:
        weight: (O, C / groups, …) of a convolution or linear layer.
        groups: of the convolution, 1 for a linear layer.
        inputs: (C,), or (1,) for the same constant everywhere.

    Returns:
        (O,) float64, ``sum over channels and kernel of W x``: exact away from zero padding.
    """
    kernel = weight.double().flatten(1).view(groups, len(weight) // groups, weight.shape[1], -1)
    constant = inputs.double().expand(groups * weight.shape[1])
    return (kernel.sum(3) * constant.view(groups, 1, -1)).sum(2).flatten()


def activated(activation: nn.Module, before: Moments) -> Moments:
    """Behind an elementwise activation function, its input taken for normal.

    ReLU and ReLU6 have the closed mean `clipped_normal_mean`; other means and all deviations are
    integrals over 8 deviations to both sides. The range is that of the function over the range.
    """
    place = torch.linspace(-_TAIL, _TAIL, _POINTS, dtype=torch.float64, device=before.mean.device)
    weights = torch.exp(-place.square() / 2)[:, None]
    weights = weights / weights.sum()
    values = _applied(activation, before.mean + before.std * place[:, None])
    mean = (weights * values).sum(0)
    std = (weights * (values - mean).square()).sum(0).sqrt()
    upper = _upper_clip(activation)
    if upper is not None:
        mean = torch.where(mean.isnan(), mean, clipped_normal_mean(before.mean, before.std, upper))
    return Moments(mean, std, *_range(activation, before))


def added(one: Moments, two: Moments) -> Moments:
    """The sum of two tensors that are not correlated.

    Means add; deviations, and the reaches of the ranges beyond the means, add in quadrature. Where
    a mean is not known the ends of the ranges add, which holds for correlated tensors too.
    """
    mean = one.mean + two.mean
    std = (one.std.square() + two.std.square()).sqrt()
    below = ((one.mean - one.low).square() + (two.mean - two.low).square()).sqrt()
    above = ((one.high - one.mean).square() + (two.high - two.mean).square()).sqrt()
    known = ~mean.isnan()
    low = torch.where(known, mean - below, one.low + two.low)
    high = torch.where(known, mean + above, one.high + two.high)
    return Moments(mean, std, low, high)


def shifted(before: Moments, number: float) -> Moments:
    """The sum of a tensor and a number."""
    return Moments(before.mean + number, before.std, before.low + number, before.high + number)


def multiplied(one: Moments, two: Moments) -> Moments:
    """The product of two tensors: its range alone, as the mean depends on their correlation."""
    ends = torch.stack([a * b for a in (one.low, one.high) for b in (two.low, two.high)])
    # 0 times infinity is not known either.
    low, high = ends.amin(0), ends.amax(0)
    return only_range(_or_infinite(low, -math.inf), _or_infinite(high, math.inf))


def side_by_side(parts: Sequence[Moments], channels: Sequence[int]) -> Moments:
    """The concatenation of tensors with so many `channels` each."""
    wide = list(zip(parts, channels, strict=True))
    return Moments(
        torch.cat([part.mean.expand(count) for part, count in wide]),
        torch.cat([part.std.expand(count) for part, count in wide]),
        torch.cat([part.low.expand(count) for part, count in wide]),
        torch.cat([part.high.expand(count) for part, count in wide]),
    )


def mixed(before: Moments) -> Moments:
    """Channels were moved in ways that are not followed: one range for all, no mean."""
    return only_range(before.low.min().view(1), before.high.max().view(1))


def reshaped(before: Moments, old: Sequence[int], new: Sequence[int]) -> Moments:
    """Behind a view of shape `old` as `new`: positions become runs of a channel."""
    if len(new) < 2 or new[0] != old[0] or len(before.mean) != old[1]:
        return mixed(before)
    if new[1] == old[1]:
        return before
    if len(new) == 2 and new[1] == math.prod(old[1:]):
        runs = new[1] // old[1]
        return before.at(torch.arange(new[1], device=before.mean.device) // runs)
    return mixed(before)


def _applied(activation: nn.Module, values: Tensor) -> Tensor:
    """`activation` of (N, C) float64 values; parametric ones compute in their own precision."""
    parameter = next(activation.parameters(), None)
    own = values if parameter is None else values.to(parameter.dtype)
    # In-place activations would write into what the caller still needs.
    return activation(own.clone()).detach().double()


def _upper_clip(activation: nn.Module) -> float | None:
    """Where ReLU and its clipped kin end; None for other functions."""
    if isinstance(activation, nn.ReLU):
        return math.inf
    if isinstance(activation, nn.Hardtanh) and activation.min_val == 0:
        return float(activation.max_val)
    return None


def _range(activation: nn.Module, before: Moments) -> tuple[Tensor, Tensor]:
    share = torch.linspace(0, 1, _POINTS, dtype=torch.float64, device=before.low.device)[:, None]
    inside = _applied(activation, before.low + (before.high - before.low) * share)
    # The ends alone serve where one is infinite: clipping functions still have a range there.
    ends = _applied(activation, torch.stack((before.low, before.high)))
    values = torch.cat((inside.where(~inside.isnan(), ends[:1]), ends))
    low, high = values.amin(0), values.amax(0)
    return _or_infinite(low, -math.inf), _or_infinite(high, math.inf)


def _or_infinite(values: Tensor, infinity: float) -> Tensor:
    return values.where(~values.isnan(), infinity)
