"""The frontier of mixed precision: what no other choice of bits beats, and what was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FrontierPlot:
    """Sizes against expected losses.

    Attributes:
        unit: of costs, `kB` of weights or `MBOPs` of one image.
        line: cost and sum of sensitivities (nats), by increasing cost.
        uniform: the same bits in every layer: bits, cost and sum.
        chosen: cost and sum.
        budget: as it was asked for.
        average_bits: of the layers whose bits were free.
    """

    unit: str
    line: tuple[tuple[float, float], ...]
    uniform: tuple[tuple[str, float, float], ...]
    chosen: tuple[float, float]
    budget: str
    average_bits: float


_UNITS = {"bits": ("kB", 8e3), "BOPs": ("MBOPs", 1e6)}
_POINTS = 400


def frontier_plot(record: Mapping[str, Any] | None) -> FrontierPlot | None:
    """What `allocation.json` of a run holds; None where there is no such file.

    Args:
        record: the content of the file.
    """
    if record is None:
        return None
    chosen, points = record["chosen"], record["frontier"]
    unit, divisor = _UNITS.get(chosen["unit"], (chosen["unit"], 1.0))
    step = -(-len(points) // _POINTS)
    kept = points[::step] + ([] if (len(points) - 1) % step == 0 else points[-1:])
    return FrontierPlot(
        unit=unit,
        line=tuple((cost / divisor, loss) for cost, loss, _ in kept),
        uniform=tuple(
            (bits, total["cost"] / divisor, total["sensitivity"])
            for bits, total in chosen["uniform"].items()
        ),
        chosen=(chosen["cost"] / divisor, chosen["sensitivity"]),
        budget=str(chosen["budget"]),
        average_bits=float(chosen["average_bits"]),
    )
