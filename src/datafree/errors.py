"""Every error and warning a user can meet: what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class DatafreeError(Exception):
    """Base of all errors raised on purpose; the command line exits with code 2."""

    def __str__(self) -> str:
        """The message, one line of signs that can be printed.

        What a stranger's file calls its parts stands in it, and a terminal would obey some signs.
        """
        message = super().__str__()
        if message.isprintable():
            return message
        return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in message)


class ConfigError(DatafreeError):
    """An option, a configuration file or a combination of options that cannot work."""


class UnknownNameError(ConfigError):
    """A name that is not in a list of known names; the message offers the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        """Build the message from the `kind` of thing, the `name` given and all `known` names."""
        names = sorted(known)
        close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"choose from {', '.join(names)}"
        super().__init__(f"unknown {kind} {name!r}: {hint}")


class UntrustedCodeError(ConfigError):
    """A file that names Python code, which would be run; nobody has said that it may.

    Attributes:
        where: the file.
        code: what it names.
    """

    def __init__(self, where: Path, code: str) -> None:
        """Say so of the file `where` and the `code` in it."""
        super().__init__(
            f"{where} would run the code {code}: read it, and pass --trust-code (trust_code=True in"
            " Python) if it may run here"
        )
        self.where, self.code = where, code


class ModelError(DatafreeError):
    """A model that cannot be found, built, loaded or used."""


class CaptureError(ModelError):
    """A model that `torch.export` or the lifting to standard layers refuses."""


class DataError(DatafreeError):
    """Images or labels that cannot be read, or do not fit the network."""


class ExportError(DatafreeError):
    """A student that cannot be written in the format asked for."""


class ParityError(ExportError):
    """A written file that does not compute what the student computes; says by how much."""


class InferenceError(DatafreeError):
    """A runtime that is not installed, or a file that it cannot load or run."""


class OutputExistsError(DatafreeError):
    """An output path that exists already and was not to be replaced."""


class OutputError(DatafreeError):
    """A file or folder that cannot be written: no room, no permission, gone; nothing is torn."""


class BusyError(OutputError):
    """A folder that another run is writing to."""


class NoRoomError(DatafreeError):
    """Memory that not even the fewest items fit into; what was finished before is kept."""


class VerdictError(DatafreeError):
    """A finished run whose verdict is what it was to fail at, or worse; exit code 3.

    Attributes:
        result: the whole `datafree.Result`; its folder was written.
    """

    def __init__(self, message: str, result: Any) -> None:
        """Say so of `result`."""
        super().__init__(message)
        self.result = result


class SweepError(DatafreeError):
    """A sweep in which cells failed, are missing or below `fail_below`; exit code 4.

    Attributes:
        swept: what there is, a `datafree.sweeps.sweeping.Swept`; the table was written.
        verdicts: all cells are finished, and it is their verdicts; exit code 3.
    """

    def __init__(self, message: str, swept: Any, *, verdicts: bool) -> None:
        """Say so of `swept`."""
        super().__init__(message)
        self.swept, self.verdicts = swept, verdicts


class NetworkWarning(UserWarning):
    """What a user should know of a network that is taken all the same: it was not trained, say."""


class ReportWarning(UserWarning):
    """Why a finished run has no page; everything else of it was written."""


class MemoryWarning(UserWarning):
    """How many items are worked on together, where it is fewer than usual for want of memory."""
