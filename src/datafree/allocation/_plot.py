"""One curve with marked points, drawn with Pillow: a plotting library would be a dependency."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from datafree.files import atomic_path

_WIDTH, _HEIGHT = 900, 560
_LEFT, _TOP, _RIGHT, _BOTTOM = 90, 50, 870, 490
_INK, _GRID, _CURVE, _CHOSEN = (40, 40, 40), (225, 225, 225), (31, 96, 168), (200, 60, 30)


@dataclass(frozen=True)
class Mark:
    """A point with a name beside it."""

    x: float
    y: float
    name: str


@dataclass(frozen=True)
class _Axes:
    """From values to pixels: x linear, y logarithmic."""

    xs: tuple[float, float]
    ys: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.xs[0]) / (self.xs[1] - self.xs[0])
        low, high = math.log10(self.ys[0]), math.log10(self.ys[1])
        up = (math.log10(max(y, self.ys[0])) - low) / (high - low)
        return _LEFT + across * (_RIGHT - _LEFT), _BOTTOM - up * (_BOTTOM - _TOP)


def plot(
    path: Path,
    *,
    titles: tuple[str, str],
    line: Sequence[tuple[float, float]],
    marks: Sequence[Mark],
    chosen: Mark,
    show: Callable[[float], str],
) -> None:
    """Draw a falling curve over a linear x and a logarithmic y axis, and write it as PNG.

    Args:
        path: file to write, atomically.
        titles: above the picture, left and right.
        line: points of the curve by increasing x; y of 0 is drawn at the lower edge.
        marks: points drawn as rings.
        chosen: the point drawn as a disc.
        show: text of a value of x.
    """
    picture = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=15)
    points = [*line, *((mark.x, mark.y) for mark in (*marks, chosen))]
    low, high = _decades([y for _, y in points])
    axes = _Axes(_range([x for x, _ in points]), (10.0**low / 1.5, 10.0**high * 1.5))
    for x in _ticks(axes.xs):
        place = axes.at(x, axes.ys[0])
        draw.line([place, (place[0], _TOP)], _GRID)
        draw.text((place[0], _BOTTOM + 8), show(x), _INK, font, anchor="ma")
    for exponent in range(low, high + 1):
        place = axes.at(axes.xs[0], 10.0**exponent)
        draw.line([place, (_RIGHT, place[1])], _GRID)
        draw.text((_LEFT - 8, place[1]), f"1e{exponent}", _INK, font, anchor="rm")
    draw.rectangle([_LEFT, _TOP, _RIGHT, _BOTTOM], outline=_INK)
    draw.line([axes.at(*point) for point in line], _CURVE, 3)
    for mark in marks:
        _spot(draw, axes.at(mark.x, mark.y), mark.name, _INK, "white", font)
    _spot(draw, axes.at(chosen.x, chosen.y), chosen.name, _CHOSEN, _CHOSEN, font)
    draw.text((_LEFT, 18), titles[0], _INK, font)
    draw.text((_RIGHT, 18), titles[1], _INK, font, anchor="ra")
    with atomic_path(path) as temporary:
        picture.save(temporary)


def _spot(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    name: str,
    colour: tuple[int, int, int],
    fill: str | tuple[int, int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    x, y = place
    draw.ellipse([x - 5, y - 5, x + 5, y + 5], fill, colour, 2)
    below = fill == colour
    # The curve lies to the lower left of what is not on it.
    shift, anchor = ((-9, 6), "ra") if below else ((9, -6), "ls")
    draw.text((x + shift[0], y + shift[1]), name, colour, font, anchor=anchor)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.09 * (high - low) or 0.5 * abs(high) or 1.0
    return low - margin, high + margin


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """Exponents of the powers of ten around the positive values, one to twelve apart."""
    positive = [value for value in values if value > 0] or [1.0]
    high = math.floor(math.log10(max(positive))) + 1
    low = math.floor(math.log10(min(positive)))
    return max(low, high - 12), high


def _ticks(span: tuple[float, float]) -> list[float]:
    """Four to ten round values inside `span`: 1, 2 or 5 times a power of ten apart."""
    power = 10.0 ** math.floor(math.log10((span[1] - span[0]) / 4))
    wide = (span[1] - span[0]) / power
    step = power * max(factor for factor in (1, 2, 5) if wide / factor >= 4)
    first = math.ceil(span[0] / step)
    return [k * step for k in range(first, math.floor(span[1] / step) + 1)]
