"""When work that could go on should end: a value that is passed in, and shared out among parts."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Deadline:
    """A point in time, by `time.monotonic`; the default never comes.

    Whoever is given one looks at it between two steps, and returns what there is when it is over.
    """

    at: float = math.inf

    @classmethod
    def within(cls, seconds: float | None) -> Deadline:
        """So many seconds from now; never for None."""
        return cls() if seconds is None else cls(time.monotonic() + seconds)

    @property
    def limited(self) -> bool:
        """Whether it ever comes."""
        return math.isfinite(self.at)

    @property
    def left(self) -> float:
        """Seconds until then: 0 where it has passed, infinite where it never comes."""
        return max(0.0, self.at - time.monotonic())

    @property
    def over(self) -> bool:
        """Whether it has come."""
        return time.monotonic() >= self.at

    def before(self, seconds: float) -> Deadline:
        """So many seconds earlier, for what comes afterwards."""
        return Deadline(self.at - seconds)

    def share(self, part: float) -> Deadline:
        """When the share `part`, 0 to 1, of the time that is left now will have passed."""
        return Deadline(time.monotonic() + part * self.left) if self.limited else self


NEVER = Deadline()
"""No limit."""
