"""Mixed precision: from images and a budget to bits of every layer, and the frontier behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, fx

from datafree.allocation._plot import Mark, plot
from datafree.allocation.budget import (
    Budget,
    Layer,
    Unit,
    describe_layers,
    options_of,
    resolve_budget,
    show_cost,
)
from datafree.allocation.frontier import Frontier, pareto_frontier
from datafree.allocation.sensitivity import sensitivities
from datafree.config import BudgetOptions, Scheme
from datafree.config.widths import FLOAT
from datafree.files import write_text
from datafree.jsons import to_json
from datafree.progress import Progress, silent

_POINTS_WRITTEN = 1000


@dataclass(frozen=True)
class Total:
    """What a network costs and is expected to lose.

    Attributes:
        cost: in the unit of the budget, layers whose bits are settled included.
        sensitivity: sum of the free layers' sensitivities, in nats.
    """

    cost: int
    sensitivity: float


@dataclass(frozen=True)
class Allocation:
    """Bits of every layer, and where they come from.

    Attributes:
        layer_bits: by layer path in execution order, for `Scheme.layer_bits`; layers whose bits
            were settled before included, those in float not.
        budget: kept to.
        total: of the chosen bits.
        uniform: the same bits in every free layer, by bits, for comparison.
        layers: what they cost.
        sensitivities: nats by layer path and bits.
        frontier: totals that no other choice of bits beats.
        bits: numbers of bits to choose from.
    """

    layer_bits: dict[str, int]
    budget: Budget
    total: Total
    uniform: dict[int, Total]
    layers: tuple[Layer, ...]
    sensitivities: dict[str, dict[int, float]]
    frontier: Frontier
    bits: tuple[int, ...]

    def summary(self) -> dict[str, Any]:
        """What was chosen as JSON values: bits, their average over free layers, size, totals."""
        free = [layer for layer in self.layers if layer.free]
        elements = max(sum(layer.elements for layer in free), 1)
        chosen = sum(layer.elements * self.layer_bits[layer.path] for layer in free)
        size = sum(
            layer.elements * self.layer_bits.get(layer.path, layer.bits) for layer in self.layers
        )
        return {
            "budget": self.budget.text,
            "layer_bits": dict(self.layer_bits),
            "elements": {layer.path: layer.elements for layer in self.layers},
            "average_bits": chosen / elements,
            "weight_bytes": -(-size // 8),
            "unit": self.budget.unit,
            **asdict(self.total),
            "uniform": {str(bits): asdict(total) for bits, total in self.uniform.items()},
        }

    def save(self, path: Path) -> None:
        """Write everything as JSON, atomically; of a long frontier every so many points.

        A point is its cost, its sensitivity, and the bits of all layers as a row of digits, f for
        float.
        """
        step = -(-len(self.frontier) // _POINTS_WRITTEN)
        last = len(self.frontier) - 1
        record = {
            "chosen": self.summary(),
            "layers": [
                asdict(layer) | {"sensitivity": self.sensitivities[layer.path]}
                for layer in self.layers
            ],
            "points": len(self.frontier),
            "exact": self.frontier.exact,
            "frontier": [
                [
                    int(self.frontier.costs[point]),
                    float(self.frontier.losses[point]),
                    "".join(
                        "f" if b == FLOAT else str(b)
                        for b in _bits_at(self.frontier, point, self.layers, self.bits)
                    ),
                ]
                for point in (*range(0, last, step), last)
            ],
        }
        write_text(path, to_json(record, path.name) + "\n")

    def save_picture(self, path: Path) -> None:
        """Draw the frontier, the uniform networks and the chosen one to a PNG."""
        unit = self.budget.unit
        marks = [
            Mark(float(total.cost), total.sensitivity, f"{bits} bits")
            for bits, total in self.uniform.items()
        ]
        chosen = Mark(float(self.total.cost), self.total.sensitivity, "chosen")
        plot(
            path,
            titles=(
                f"{self.budget.text}: {show_cost(self.total.cost, unit)}",
                "sum of sensitivities (nats) against"
                f" {'size of the weights' if unit == 'bits' else 'bit operations'}",
            ),
            line=list(
                zip(self.frontier.costs.tolist(), self.frontier.losses.tolist(), strict=True)
            ),
            marks=marks,
            chosen=chosen,
            show=lambda cost: show_cost(round(cost), unit),
        )


def allocate(
    folded: fx.GraphModule,
    scheme: Scheme,
    images: Tensor,
    wanted: BudgetOptions,
    *,
    progress: Progress = silent,
) -> Allocation:
    """The bits of every layer that lose least within a budget (ZeroQ, algorithms B.12).

    Minimises ``sum_l Omega_l(k_l)`` subject to ``sum_l cost_l(k_l) <= budget``, over all choices of
    ``wanted.candidate_bits`` for every layer the policy leaves free; see `sensitivities` for Omega
    and `pareto_frontier` for the search, which is exact. That losses of layers add up is assumed.

    Args:
        folded: the float graph the student will be made from; not changed.
        scheme: of the student; layers that its policy keeps at 8 bits, that it gives bits or keeps
            in float keep what they have, and are paid for.
        images: (N, C, H, W), normalised.
        wanted: the budget, and the numbers of bits to choose from.
        progress: shown while sensitivities are measured.

    Raises:
        ConfigError: a budget that is not understood or cannot be kept to; no images.
        ModelError: the network has no layer to quantize, or weights or outputs are not finite.
    """
    shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
    layers = describe_layers(folded, scheme, shape)
    budget = resolve_budget(wanted, layers)
    bits = wanted.candidate_bits
    losses = sensitivities(folded, scheme, images, bits, progress=progress)
    frontier = pareto_frontier(options_of(layers, losses, bits, budget.unit))
    point = frontier.within(budget.limit)
    assert point is not None  # noqa: S101 - the cheapest point is exact, and was compared before
    chosen = _bits_at(frontier, point, layers, bits)
    return Allocation(
        layer_bits={
            layer.path: width for layer, width in zip(layers, chosen, strict=True) if width != FLOAT
        },
        budget=budget,
        total=Total(int(frontier.costs[point]), float(frontier.losses[point])),
        uniform={width: _uniform(layers, losses, width, budget.unit) for width in bits},
        layers=tuple(layers),
        sensitivities=losses,
        frontier=frontier,
        bits=bits,
    )


def _bits_at(
    frontier: Frontier, point: int, layers: Sequence[Layer], bits: Sequence[int]
) -> list[int]:
    chosen = zip(layers, frontier.choice(point), strict=True)
    return [layer.choices(bits)[index] for layer, index in chosen]


def _uniform(
    layers: Sequence[Layer], losses: dict[str, dict[int, float]], bits: int, unit: Unit
) -> Total:
    alone = [option for (option,) in options_of(layers, losses, [bits], unit)]
    return Total(sum(cost for cost, _ in alone), sum(loss for _, loss in alone))
