"""What is found where a written file holds another number than the student."""

from __future__ import annotations

from pathlib import Path

from datafree.errors import ParityError


class Differs(Exception):  # noqa: N818 - a finding, which becomes a `ParityError`
    """A number of the file is another than the student's.

    Attributes:
        what: which numbers: *the codes of the weight of features.0*.
        detail: which of them, and both values.
    """

    def __init__(self, what: str, detail: str) -> None:
        """See the class for the arguments."""
        super().__init__(f"{what}: {detail}")
        self.what, self.detail = what, detail

    def refusal(self, path: Path) -> ParityError:
        """The error for the file at `path`."""
        return ParityError(
            f"{path} does not hold what the student holds: {self.what} differ ({self.detail});"
            " the file was not kept"
        )
