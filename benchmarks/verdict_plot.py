"""The picture of estimated against true losses, network by network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks.verdict_fit import Told
from datafree.files import atomic_path
from datafree.verdict.estimate import GOOD, POOR

_MARKERS = "os^Dv*P<>X"
_LINEAR = 1.0
"""Points up to which the axes are linear; logarithmic from there."""
_TICKS = (0, 0.5, 1, 2, 5, 10, 20, 50, 90)


def scatter(told: Sequence[Told], path: Path) -> None:
    """Write a PNG: true loss to the right, estimate with its interval upwards.

    Args:
        told: of every student by a model that has not seen its network.
        path: file to write.
    """
    with mpl.rc_context({"font.size": 9, "svg.hashsalt": "verdict"}):
        figure = Figure(figsize=(7.2, 6.2), dpi=130, layout="constrained")
        axes = figure.subplots()
        axes.axhspan(0, GOOD, color="#2a9d4a", alpha=0.10, lw=0)
        axes.axhspan(POOR, 100, color="#c0392b", alpha=0.08, lw=0)
        axes.plot([0, 100], [0, 100], color="0.4", lw=0.8)
        networks = list(dict.fromkeys(one.row.network for one in told))
        for place, (network, marker) in enumerate(zip(networks, _MARKERS, strict=False)):
            own = [one for one in told if one.row.network == network]
            true = np.array([max(one.row.loss, 0.0) for one in own])
            guess = np.array([one.verdict.loss for one in own])
            low = np.array([one.verdict.low for one in own])
            high = np.array([one.verdict.high for one in own])
            axes.errorbar(
                true, guess, yerr=np.stack([guess - low, high - guess]), fmt=marker, ms=5,
                lw=0.7, alpha=0.8, color=f"C{place}", label=network,
            )  # fmt: skip
        for axis in ("x", "y"):
            getattr(axes, f"set_{axis}scale")("symlog", linthresh=_LINEAR)
            getattr(axes, f"set_{axis}ticks")(_TICKS, [f"{tick:g}" for tick in _TICKS])
            getattr(axes, f"set_{axis}lim")(-0.05, 95)
        axes.set_xlabel("true loss of top-1 on labelled test images (points)")
        axes.set_ylabel("estimated without labels, its network left out of the fit (points)")
        axes.text(0.02, GOOD * 0.97, "good, if the interval is short", va="top", color="#1d6e34")
        axes.text(0.02, 88, "poor", va="top", color="#8e2a1e")
        axes.legend(loc="lower right", frameon=False)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": None})
