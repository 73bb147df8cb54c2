"""Curves of several runs in one picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from datafree.errors import ConfigError
from datafree.files import atomic_path

_SUFFIXES = (".png", ".svg", ".pdf")
_MARKS = "osD^vP*X"


def check_picture(path: Path) -> None:
    """Refuse a picture that cannot be drawn.

    Raises:
        ConfigError: its name has another suffix, or matplotlib is not installed.
    """
    if path.suffix not in _SUFFIXES:
        raise ConfigError(f"no picture is drawn as {path}: name it .png, .svg or .pdf")
    try:
        import matplotlib  # noqa: F401 - is it there  # pyright: ignore[reportUnusedImport]
    except ImportError:
        raise ConfigError("pictures need matplotlib: pip install 'datafree[report]'") from None


def plot_layers(layers: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Draw the signal-to-noise ratio of every layer, a curve for every run, and write it.

    Args:
        layers: dB by run and layer, in the order of the network.
        path: picture to write, atomically.

    Raises:
        ConfigError: no run has any, or the picture cannot be drawn.
    """
    check_picture(path)
    # Not pyplot: it keeps state, and may look for a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    places = list(dict.fromkeys(name for found in layers.values() for name in found))
    if not places:
        raise ConfigError("none of these runs has layers to draw: they were made without images")
    figure = Figure(figsize=(max(7.0, 0.28 * len(places)), 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for k, (run, found) in enumerate(layers.items()):
        own = [(place, found[name]) for place, name in enumerate(places) if name in found]
        if own:
            x, y = zip(*own, strict=True)
            axes.plot(x, y, marker=_MARKS[k % len(_MARKS)], markersize=4, linewidth=1.4, label=run)
    axes.set_xticks(range(len(places)), places, rotation=90, fontsize=7)
    axes.set_ylabel("signal to quantization noise, dB")
    axes.set_title("Noise layer by layer, cumulative: higher is better", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)
