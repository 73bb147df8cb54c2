"""Layer by layer: bits, noise of its own, noise that arrived, and which layer is weakest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from datafree.graph.widths import quantizers_before
from datafree.quant.modules import QUANTIZED, QuantizedLayer
from datafree.report.histograms import Histogram, activation_histograms, weight_histograms


@dataclass(frozen=True)
class LayerRow:
    """One quantized layer.

    Attributes:
        path: of the layer.
        kind: its sizes in words.
        weights: number of its weights.
        weight: its weights against their grid.
        inputs: what arrives at the quantizers before it, by their names; none where it reads float.
        sqnr_db: of its output, all layers quantized; None where it was not measured, or nothing was
            lost.
        alone: divergence of the answers from those of the float network where this layer alone is
            quantized (nats); None where it was not measured.
        without: the same where all layers but this one are.
    """

    path: str
    kind: str
    weights: int
    weight: Histogram
    inputs: tuple[tuple[str, Histogram], ...]
    sqnr_db: float | None
    alone: float | None
    without: float | None

    @property
    def own_noise(self) -> float:
        """Noise of its two roundings over signal: those of its weights and its input, added."""
        both = (self.weight, *(found for _, found in self.inputs))
        return sum(noise(found.sqnr_db) for found in both)

    @property
    def lost(self) -> float:
        """What isolation blames it for, but for a number that all layers share."""
        if self.alone is None or self.without is None:
            return -math.inf
        return self.alone - self.without

    @property
    def clipped(self) -> float:
        """Largest clipped share of its weights and its input."""
        return max(self.weight.clipped, *(found.clipped for _, found in self.inputs), 0.0)


@dataclass(frozen=True)
class Layers:
    """All quantized layers of a student.

    Attributes:
        rows: in execution order.
        weakest: the same, weakest first.
        measure: what makes the first of `weakest` weakest, in words.
        missing: what was not measured, a sentence each.
        total: divergence of the student (nats); None where layers were not measured one by one.
    """

    rows: tuple[LayerRow, ...]
    weakest: tuple[LayerRow, ...]
    measure: str
    missing: tuple[str, ...]
    total: float | None = None

    def alone(self, row: LayerRow) -> float:
        """A layer's divergence alone, over the largest of all layers."""
        largest = max((one.alone or 0.0 for one in self.rows), default=0.0)
        return (row.alone or 0.0) / largest if largest else 0.0

    def blame(self, row: LayerRow) -> float:
        """Share of the student's divergence that goes when a layer stays in float, 0 to 1."""
        if not self.total or row.without is None:
            return 0.0
        return min(1.0, max(0.0, 1 - row.without / self.total))


def noise(sqnr_db: float | None) -> float:
    """Noise over signal of a ratio in dB; 0 where nothing was lost."""
    return 0.0 if sqnr_db is None else 10 ** (-sqnr_db / 10)


def layers_of(
    student: fx.GraphModule,
    floats: Mapping[str, Tensor],
    batches: Sequence[Tensor],
    metrics: Mapping[str, Any],
) -> Layers:
    """Every quantized layer of `student`.

    Args:
        student: quantized.
        floats: weights before, by path.
        batches: images on its device; none where there are none.
        metrics: of the run: ``sqnr_db``, and what layers lose one by one (``isolation``).
    """
    weights = weight_histograms(student, floats)
    activations = activation_histograms(student, batches) if batches else {}
    told = {path: db for path, db in (metrics.get("sqnr_db") or {}).items() if db is not None}
    # Records have strings for infinities, of layers that lost nothing.
    noisy = {path: float(db) for path, db in told.items() if math.isfinite(float(db))}
    apart, total = isolated(metrics)
    rows: list[LayerRow] = []
    for path, before in quantizers_before(student).items():
        layer = student.get_submodule(path)
        assert isinstance(layer, QUANTIZED)  # noqa: S101 - only these are found
        rows.append(
            LayerRow(
                path=path,
                kind=described(layer),
                weights=layer.weight.numel(),
                weight=weights[path],
                inputs=tuple(
                    (name, activations[name]) for name in sorted(before) if name in activations
                ),
                sqnr_db=noisy.get(path),
                alone=apart.get(path, {}).get("alone"),
                without=apart.get(path, {}).get("without"),
            )
        )
    return _ranked(rows, total)


def _ranked(rows: Sequence[LayerRow], total: float | None) -> Layers:
    missing: list[str] = []
    if not any(row.sqnr_db is not None for row in rows):
        missing.append("Noise over all layers before was not measured: the run had no images.")
    if any(row.without is not None for row in rows):
        worst = sorted(rows, key=lambda row: -row.lost)
        measure = "by itself and left in float it changes the answers most"
    else:
        missing.append("Layers were not quantized one by one in this run.")
        worst = sorted(rows, key=lambda row: -row.own_noise)
        measure = "rounding its weights and its input adds most noise"
    return Layers(tuple(rows), tuple(worst), measure, tuple(missing), total)


def isolated(metrics: Mapping[str, Any]) -> tuple[dict[str, Mapping[str, Any]], float | None]:
    """Divergences of single layers by path, and that of the student; empty where not measured."""
    found = metrics.get("isolation") or {}
    return dict(found.get("by_layer", {})), found.get("total")


def described(layer: QuantizedLayer) -> str:
    """A layer's sizes: ``3x3, 16 to 32, stride 2``."""
    if isinstance(layer, nn.Linear):
        return f"linear, {layer.in_features} to {layer.out_features}"
    kernel = "x".join(str(size) for size in layer.kernel_size)
    parts = [f"{kernel}, {layer.in_channels} to {layer.out_channels}"]
    if layer.groups > 1:
        depthwise = layer.groups == layer.in_channels
        parts.append("depthwise" if depthwise else f"{layer.groups} groups")
    if max(layer.stride) > 1:
        parts.append(f"stride {max(layer.stride)}")
    return ", ".join(parts)
