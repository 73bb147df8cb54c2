"""From what was collected to one HTML file that needs nothing else.

Plots are drawn by Observable Plot (on D3), which stands inside the page: half a megabyte, no
Python package, no time of the run. They take their colours from the page, so that it is light or
dark as the reader's system is, and are drawn anew for the width there is. Numbers stand in tables,
which need no script.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from datafree.report.alternatives import of_plane, of_points, of_values
from datafree.report.collect import Report
from datafree.report.command import folded
from datafree.report.headline import duration
from datafree.report.layers import LayerRow, noise
from datafree.report.sets import REAL

_SCRIPTS = ("vendor/d3.min.js", "vendor/plot.min.js", "report.js")
_NOTHING = "\N{EN DASH}"
_OPEN = 6  # layers whose histograms are shown at once


def render(report: Report) -> str:
    """The page of a report: HTML with everything inside it.

    Whatever comes from outside (names of layers, paths, classes) is escaped; a policy in the page
    forbids other scripts and any connection.
    """
    environment = Environment(
        loader=PackageLoader("datafree.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "duration": duration, "percent": percent, "decibel": decibel, "bar": bar, "short": short,
        "folded": folded,
    }  # fmt: skip
    layers, sets = report.layers, report.sets
    scripts = [_resource(name) for name in _SCRIPTS]
    return environment.get_template("report.html").render(
        report=report,
        spread_text=of_values,
        points_text=of_points,
        plane_text=of_plane,
        own_input=own_input,
        open=_OPEN,
        show_isolated=layers is not None and any(row.alone is not None for row in layers.rows),
        has_real=sets is not None and any(row.name == REAL for row in sets.measured),
        style=Markup(_resource("report.css")),
        scripts=[Markup(script) for script in scripts],
        hashes=" ".join(map(_hash, scripts)),
        data=Markup(embedded(plots(report))),
        notices=[_resource(f"vendor/{name}.LICENSE") for name in ("d3", "plot")],
    )


def plots(report: Report) -> dict[str, Any]:
    """What every plot of the page draws, by its name there."""
    found: dict[str, Any] = {}
    for index, row in enumerate(report.layers.rows if report.layers is not None else ()):
        found[f"weights-{index}"] = {"kind": "histogram", "codes": True, **asdict(row.weight)}
        for place, (_, histogram) in enumerate(row.inputs):
            key = f"input-{index}-{place}"
            found[key] = {"kind": "histogram", "codes": False, **asdict(histogram)}
    if report.sets is not None:
        for index, channel in enumerate(report.sets.channels):
            found[f"values-{index}"] = {"kind": "values", **asdict(channel)}
            found[f"points-{index}"] = {"kind": "points", **asdict(channel)}
        found["plane-features"] = {"kind": "plane", **asdict(report.sets.features)}
        found["plane-pixels"] = {"kind": "plane", **asdict(report.sets.pixels)}
    if report.frontier is not None:
        found["frontier"] = {"kind": "frontier", **asdict(report.frontier)}
    return found


def embedded(values: Mapping[str, Any]) -> str:
    """`values` as JSON that may stand in a script element: no tag can begin or end within it."""
    text = json.dumps(values, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def percent(share: float | None) -> str:
    """A share in percent, as exactly as it is worth reading."""
    if share is None:
        return _NOTHING
    if share == 0:
        return "0 %"
    if share < 0.0001:
        return "< 0.01 %"
    return f"{100 * share:.2f} %" if share < 0.1 else f"{100 * share:.1f} %"


def decibel(ratio: float | None) -> str:
    """A ratio in dB."""
    return _NOTHING if ratio is None else f"{ratio:.1f} dB"


def bar(ratio_db: float | None) -> str:
    """Length of a bar of noise: its root mean square in percent of the signal's, at most 100."""
    return f"{min(100.0, 100 * noise(ratio_db) ** 0.5):.1f}"


def short(value: float | None) -> str:
    """A number to three digits."""
    return _NOTHING if value is None else f"{value:.3g}"


def own_input(row: LayerRow) -> float | None:
    """Noise that rounding a layer's inputs adds, in dB; None where there is none."""
    total = sum(noise(found.sqnr_db) for _, found in row.inputs)
    return -10 * math.log10(total) if total > 0 else None


def _resource(name: str) -> str:
    return files("datafree.report").joinpath("templates", name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
