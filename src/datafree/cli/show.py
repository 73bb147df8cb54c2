"""The commands that read finished runs: one by itself, several side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from datafree.cli import console
from datafree.cli.options import Argument, Command, Option

_WIDTH = 80
_NAME = 17  # columns of the first cell where names are short
_FEW = 4  # runs that stand beside one another
_SHOW = """Show a finished run: how good, how small, how fast, its weakest layers and its files.

RUN is a folder that quantize or distill wrote, wherever it is now. Only its text files are read.

\b
Example:
  datafree show run
"""
_COMPARE = """Compare finished runs: what was measured, and the settings in which they differ.

\b
Example:
  datafree compare runs/w8a8 runs/w4a4 --plot layers.png
"""


def _show(run: str) -> None:
    from datafree.runs.page import page_of
    from datafree.runs.stored import read_run

    page = page_of(read_run(Path(run)))
    _line(page.title, "bold")
    for section in page.sections:
        _line("")
        _line(section.title, "italic")
        longest = max(len(name) for name, _ in section.rows)
        for name, text in section.rows:
            _row(name, text, min(max(_NAME, longest), 34))
    _line("")
    _line("to repeat it", "italic")
    _line(f"  {page.command}")


def _row(name: str, text: str, width: int) -> None:
    """A name, and text beside it in as many lines as it takes."""
    beside = textwrap.wrap(text, _WIDTH - width - 4, break_on_hyphens=False) or [""]
    if len(name) > width:
        _line(f"  {name}")
        name = ""
    for k, part in enumerate(beside):
        _line(f"  {name if k == 0 else '':{width}}  {part}")


def _line(text: str, style: str = "") -> None:
    console.out.print(Text(text, style=style), soft_wrap=True)


def _compare(runs: Sequence[str], plot: str | None) -> None:
    from datafree.runs.compared import compare_runs
    from datafree.runs.curves import check_picture, plot_layers

    if plot is not None:
        check_picture(Path(plot))
    found = compare_runs([Path(run) for run in runs])
    _side_by_side("measured", found.names, found.measures)
    if found.settings:
        _side_by_side("settings that differ", found.names, found.settings)
    else:
        _line("All settings are the same.")
    for note in found.notes:
        _line(note)
    if plot is not None:
        plot_layers(found.layers, Path(plot))
        _line(f"layers drawn to {plot}")


def _side_by_side(
    title: str, names: Sequence[str], rows: Sequence[tuple[str, tuple[str, ...]]]
) -> None:
    """A column for every run, a few beside one another in a table."""
    for start in range(0, len(names), _FEW):
        part = slice(start, start + _FEW)
        console.show_table(
            title, ("", *names[part]), [(name, *cells[part]) for name, cells in rows]
        )


show = Command(
    "show", help=_SHOW, callback=_show, params=[Argument("run", "Model", "Folder of a run.")]
)
compare = Command(
    "compare",
    help=_COMPARE,
    callback=_compare,
    params=[
        Argument("runs", "Model", "Folders of two or more runs.", several=True),
        Option(
            ["--plot"], "Output", metavar="FILE",
            help="Draw the noise of every layer, a curve for each run, as .png, .svg or .pdf;"
            " needs the extra report.  [default: none]",
        ),
    ],
)  # fmt: skip
