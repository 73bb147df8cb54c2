"""The picture of costs against images and against blocks, from the records of `scaling`.

python -m benchmarks.scaling_plot          # from the root of the repository
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.place import Place
from benchmarks.record import latest
from benchmarks.scaling import AXES, WORDS, Curve, curves
from benchmarks.table import load_tables
from datafree.files import atomic_path

_MARKERS = "os^Dv*P"
_SECONDS = (0.3, 1, 3, 10, 30)


def lines(by_axis: Mapping[str, Sequence[Curve]], path: Path) -> None:
    """Write a PNG: seconds of every part against images, and against blocks.

    Args:
        by_axis: what was measured, by what it was measured against.
        path: file to write.
    """
    with mpl.rc_context({"font.size": 9, "svg.hashsalt": "scaling"}):
        figure = Figure(figsize=(9.6, 5.4), dpi=130, layout="constrained")
        places: Sequence[Axes] = figure.subplots(1, len(by_axis)).tolist()
        for axes, (axis, found) in zip(places, by_axis.items(), strict=True):
            for curve in found:
                place = list(WORDS).index(curve.part)
                color, marker = f"C{place}", _MARKERS[place % len(_MARKERS)]
                label = f"{WORDS[curve.part]}: {curve.power.exponent:.2f}"
                axes.plot(curve.sizes, curve.seconds, marker, ms=5, color=color, label=label)
                ends = np.array([min(curve.sizes), max(curve.sizes)])
                line = [curve.power.at(float(end)) for end in ends]
                axes.plot(ends, line, color=color, lw=0.9)
            axes.set_xscale("log")
            axes.set_yscale("log")
            ticks = sorted({size for curve in found for size in curve.sizes})
            axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
            axes.set_yticks(_SECONDS, [f"{tick:g}" for tick in _SECONDS])
            axes.minorticks_off()
            axes.set_xlabel(AXES[axis])
            axes.set_ylabel("CPU seconds, one thread")
            axes.legend(
                frameon=False, fontsize=8, title="part: exponent", ncols=2,
                loc="lower center", bbox_to_anchor=(0.5, 1.0),
            )  # fmt: skip
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": None})


def main() -> None:
    """Write ``docs/images/scaling.png``."""
    place = Place.here()
    table = load_tables(place.house / "tables")["scaling"]
    path = place.root / "docs" / "images" / "scaling.png"
    records = tuple(latest(table, place).values())
    lines({axis: curves(records, axis) for axis in AXES}, path)
    sys.stdout.write(f"{path.relative_to(place.root)}: {len(records)} records\n")


if __name__ == "__main__":
    main()
