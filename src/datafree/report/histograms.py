"""Weights and activations against their integer grids: counts, what is clipped, what is lost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from datafree.graph.taps import tap_calls
from datafree.images import in_pieces
from datafree.quant.modules import QUANTIZED, ActivationQuantizer, QuantizedLayer

_BINS = 64  # across the grid
_BEYOND = 1.0  # so many widths of the grid are shown on each side


@dataclass(frozen=True)
class Histogram:
    """Values counted against a grid.

    Attributes:
        start: left edge of the first bin.
        width: of a bin.
        counts: of all bins; the first and the last hold whatever lies further out.
        low: smallest value of the grid.
        high: largest value of the grid.
        step: between two values of the grid.
        bits: of the grid.
        clipped: share of the values more than half a step outside the grid.
        sqnr_db: signal to quantization noise of these values alone, in dB; None where nothing is
            lost, or nothing is there.
    """

    start: float
    width: float
    counts: tuple[int, ...]
    low: float
    high: float
    step: float
    bits: int
    clipped: float
    sqnr_db: float | None


def weight_histogram(layer: QuantizedLayer, floats: Tensor | None = None) -> Histogram:
    """A layer's weights in steps of the grid of their own channel: codes before they are rounded.

    Args:
        layer: quantized.
        floats: its weight before; None where the layer keeps that itself.
    """
    quantizer = layer.weight_quantizer
    own = layer.weight.detach()
    values = own if floats is None or floats.shape != own.shape else floats.detach().to(own.device)
    grid = quantizer.grid
    with torch.no_grad():
        codes = values / quantizer.scale + quantizer.zero_point
        noise = values - quantizer(own)
    tally = _Tally(float(grid.qmin), float(grid.qmax), 1.0, grid.bits)
    tally.add(codes, values.square().sum(), noise.square().sum())
    return tally.histogram()


def activation_histograms(
    student: fx.GraphModule, batches: Iterable[Tensor]
) -> dict[str, Histogram]:
    """What arrives at every activation quantizer that has a range, by its name in the graph.

    Args:
        student: quantized; its layers see quantized inputs, as they do when it is used.
        batches: images (B, C, H, W), normalised, on its device.
    """
    quantizers = {
        name: module
        for name, module in student.named_modules()
        if isinstance(module, ActivationQuantizer) and module.enabled and module.has_range
    }
    tallies: dict[str, _Tally] = {}
    for name, one in quantizers.items():
        scale, zero_point = float(one.scale), float(one.zero_point)
        low, high = (scale * (code - zero_point) for code in (one.grid.qmin, one.grid.qmax))
        tallies[name] = _Tally(low, high, scale, one.grid.bits)

    def count(name: str, values: Tensor, rounded: Tensor) -> None:
        noise = (values - rounded).square().sum(dtype=torch.float64)
        tallies[name].add(values, values.square().sum(dtype=torch.float64), noise)

    with torch.inference_mode(), tap_calls(dict(quantizers), count):
        for images in in_pieces(batches):
            student(images)
    return {name: tally.histogram() for name, tally in tallies.items() if tally.total}


def weight_histograms(
    student: fx.GraphModule, floats: Mapping[str, Tensor]
) -> dict[str, Histogram]:
    """`weight_histogram` of every quantized layer by path; `floats` are weights before, by path."""
    return {
        path: weight_histogram(layer, floats.get(path))
        for path, layer in student.named_modules()
        if isinstance(layer, QUANTIZED)
    }


class _Tally:
    """Counts that grow batch by batch."""

    def __init__(self, low: float, high: float, step: float, bits: int) -> None:
        """Count against a grid from `low` to `high`."""
        self.low, self.high, self.step, self.bits = low, high, step, bits
        span = high - low + step
        self.width = span / _BINS
        self.start = low - step / 2 - _BEYOND * span
        self.counts = torch.zeros(round(_BINS * (1 + 2 * _BEYOND)), dtype=torch.long)
        self.total = self.outside = 0
        self.signal = self.noise = 0.0

    def add(self, values: Tensor, signal: Tensor, noise: Tensor) -> None:
        """Count `values`; `signal` and `noise` are sums of squares."""
        flat = values.flatten()
        places = ((flat - self.start) / self.width).floor_().clamp_(0, len(self.counts) - 1)
        self.counts += torch.bincount(places.long(), minlength=len(self.counts)).cpu()
        half = self.step / 2
        self.outside += int(((flat < self.low - half) | (flat > self.high + half)).sum())
        self.total += flat.numel()
        self.signal += float(signal)
        self.noise += float(noise)

    def histogram(self) -> Histogram:
        """What was counted, without empty bins beyond the grid."""
        side = round(_BINS * _BEYOND)
        filled = torch.nonzero(self.counts).flatten().tolist() or [side]
        first, last = min(side, filled[0]), max(side + _BINS - 1, filled[-1])
        some = self.noise > 0 and self.signal > 0
        return Histogram(
            start=self.start + first * self.width,
            width=self.width,
            counts=tuple(self.counts[first : last + 1].tolist()),
            low=self.low,
            high=self.high,
            step=self.step,
            bits=self.bits,
            clipped=self.outside / max(self.total, 1),
            sqnr_db=10 * math.log10(self.signal / self.noise) if some else None,
        )
