"""Ranges of weights with the least quantization error (algorithms B.2.4, Genie's search)."""

from __future__ import annotations

import torch
from torch import Tensor

from datafree.errors import ConfigError, ModelError
from datafree.quant.grid import Grid, fake_quantize

_ORDINARY = 1e-6, 1e6


def mse_range(
    values: Tensor,
    grid: Grid,
    axis: int | None = None,
    power: float = 2.4,
    candidates: int = 100,
) -> tuple[Tensor, Tensor]:
    """The range ``[r low, r high]`` that minimises ``mean |x - Q(x)|^power``.

    The extremes, widened to hold 0, shrink together by the ratios
    ``r = 1, 1 - 1/candidates, … 1/candidates``; among equals the widest wins. Genie (Jeon et al.
    2023) and BRECQ (Li et al. 2021) search weights so, with power 2.4.

    Args:
        values: weights of any shape, finite.
        grid: the codes the range will be cut into.
        axis: dimension with one range per entry, or None for one range in all.
        power: exponent of the error, positive; large ones spare outliers.
        candidates: number of ratios tried, at least 1; with 1 the range is min-max.

    Returns:
        Lower ends (at most 0) and upper ends (at least 0), float32: scalars, or of size 1 in every
        dimension but `axis`, as `Quantizer.set_range` takes them.

    Raises:
        ConfigError: `power` or `candidates` is too small.
        ModelError: a value is not finite.
    """
    if power <= 0 or candidates < 1:
        raise ConfigError(
            f"power must be above 0 and candidates at least 1, got {power} and {candidates}"
        )
    rows = _rows(values.detach().float(), axis)
    smallest, largest = torch.aminmax(rows, dim=1, keepdim=True)
    if not bool(torch.isfinite(torch.cat((smallest, largest))).all()):
        raise ModelError(
            "weights hold NaN or infinity: no range covers them; check the file they come from"
        )
    low, high = smallest.clamp(max=0), largest.clamp(min=0)
    unit = _unit(torch.maximum(-low, high))
    ratios = _best_ratios(rows / unit, low / unit, high / unit, grid, power, candidates)
    shape = [1] * values.ndim
    if axis is None:
        shape = []
    else:
        shape[axis] = -1
    return (low * ratios).view(shape), (high * ratios).view(shape)


def lsq_range(values: Tensor, grid: Grid, axis: int | None = None) -> tuple[Tensor, Tensor]:
    """The range whose step LSQ starts from: ``s = 2 mean|x| / sqrt(Q_P)`` (Esser et al., 2020).

    Args:
        values: weights of any shape.
        grid: the codes; of an affine one the zero point comes to stand in the middle.
        axis: as in `mse_range`.

    Returns:
        Lower and upper ends as `mse_range` returns them.
    """
    means = _rows(values.detach().abs().double(), axis).mean(1)
    shape = [1] * values.ndim if axis is not None else []
    if axis is not None:
        shape[axis] = -1
    return lsq_ends(means.view(shape), grid, signed=True)


def lsq_ends(magnitude: Tensor, grid: Grid, *, signed: bool) -> tuple[Tensor, Tensor]:
    """The ends of LSQ's first range for values of a mean `magnitude`.

    Args:
        magnitude: means, any shape.
        grid: the codes.
        signed: values may be negative. Then ``Q_P = 2^(b-1) - 1``, else ``2^b - 1``.
    """
    most = 2 ** (grid.bits - 1 if signed else grid.bits) - 1
    step = 2 * magnitude.double() / most**0.5
    low = -step * (most if grid.symmetric else most + 1) if signed else torch.zeros_like(step)
    end = torch.finfo(torch.float32).max
    return low.clamp(min=-end).float(), (step * most).clamp(max=end).float()


def _unit(reach: Tensor) -> Tensor:
    """What rows are divided by, so that no power of an error is 0 or infinite: a power of two.

    1 where `reach`, the largest magnitude of a row, is ordinary: to the last digit nothing changes.
    """
    ordinary = (reach > _ORDINARY[0]) & (reach < _ORDINARY[1]) | (reach == 0)
    return torch.where(ordinary, 1.0, torch.exp2(torch.frexp(reach).exponent.clamp(max=127)))


def _rows(values: Tensor, axis: int | None) -> Tensor:
    """(entries of `axis`, rest) values that share a range."""
    return values.reshape(1, -1) if axis is None else values.movedim(axis, 0).flatten(1)


def _best_ratios(
    rows: Tensor, low: Tensor, high: Tensor, grid: Grid, power: float, candidates: int
) -> Tensor:
    """(rows, 1) ratio of the extremes with the least error of each row."""
    best = torch.ones_like(low)
    least = _errors(rows, low, high, grid, power)
    for step in range(1, candidates):
        ratio = 1 - step / candidates
        errors = _errors(rows, low * ratio, high * ratio, grid, power)
        better = errors < least
        best[better] = ratio
        least = torch.where(better, errors, least)
    return best


def _errors(rows: Tensor, low: Tensor, high: Tensor, grid: Grid, power: float) -> Tensor:
    """(rows, 1) sums of ``|x - Q(x)|^power`` over each row."""
    scale, zero_point = grid.parameters(low, high)
    # In place: weights of large layers do not fit the cache, and every temporary is a pass over it.
    errors = fake_quantize(rows, scale, zero_point, grid).sub_(rows).abs_()
    # Most of the time goes here: exp(p log e) takes half the time of pow, which corrects the last
    # digit; a square needs neither.
    errors = errors.square_() if power == 2 else errors.log_().mul_(power).exp_()
    return errors.sum(1, keepdim=True)
