"""Plots in words, for who cannot see them."""

from __future__ import annotations

from collections.abc import Sequence

from datafree.report.sets import Channel, Plane


def of_values(channel: Channel) -> str:
    """Where the values of every set lie: their mean and deviation."""
    told: list[str] = []
    for name, shares in channel.shares.items():
        places = [channel.start + (i + 0.5) * channel.width for i in range(len(shares))]
        total = sum(shares) or 1.0
        mean = sum(x * share for x, share in zip(places, shares, strict=True)) / total
        square = sum((x - mean) ** 2 * share for x, share in zip(places, shares, strict=True))
        told.append(f"{name} around {mean:.2g} with deviation {(square / total) ** 0.5:.2g}")
    return "; ".join(told)


def of_points(channel: Channel) -> str:
    """From where to where the means and deviations of every set reach."""
    told: list[str] = []
    for name, points in channel.points.items():
        means, deviations = zip(*points, strict=True)
        told.append(f"{name} means {_range(means)}, deviations {_range(deviations)}")
    return "; ".join(told)


def of_plane(plane: Plane) -> str:
    """Where the points of every set lie and how far they spread."""
    told: list[str] = []
    for name, points in plane.points.items():
        centre = [sum(values) / len(points) for values in zip(*points, strict=True)]
        square = sum((x - centre[0]) ** 2 + (y - centre[1]) ** 2 for x, y in points)
        spread = (square / len(points)) ** 0.5
        told.append(
            f"{len(points)} of {name} around ({centre[0]:.2g}, {centre[1]:.2g}), {spread:.2g} from"
            " there on average"
        )
    return "; ".join(told)


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.2g} to {max(values):.2g}"
