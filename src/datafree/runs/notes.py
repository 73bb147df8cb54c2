"""What a user should know of a network before anything is made of it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

from torch import fx

from datafree.errors import NetworkWarning
from datafree.graph.untrained import untrained
from datafree.models import Teacher

_PACKAGE = str(Path(__file__).parents[1])


def noted(teacher: Teacher, graph: fx.GraphModule, chosen: str = "") -> list[str]:
    """The notes on a network, after each was given as a `NetworkWarning`.

    The command line shows these warnings as lines.

    Args:
        teacher: as it was loaded.
        graph: as it was captured, its batch norms unfolded.
        chosen: what it made the run choose; empty where nothing was left to it.
    """
    notes = [note for note in (*teacher.notes, untrained(graph), chosen) if note]
    warn_of(notes)
    return notes


def warn_of(notes: Iterable[str]) -> None:
    """Give each of `notes` as a `NetworkWarning` of the line of the user's that led here."""
    for note in notes:
        warnings.warn(note, NetworkWarning, stacklevel=_outside())


def _outside() -> int:
    """The stack level, for a warning of the caller, of the first frame that is not this package's.

    The user's line is shown with the warning then, whatever function was called.
    """
    level, frame = 1, sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    return level
