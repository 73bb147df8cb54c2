"""What the steps of a method take: the moments they were done at, in CPU seconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Generator
from contextlib import contextmanager
from itertools import pairwise

from datafree.progress import Progress, Step


def noting(moments: dict[str, list[float]]) -> Progress:
    """A progress that notes when steps were done, by what they are of."""

    @contextmanager
    def progress(description: str, total: int) -> Generator[Step]:
        del total
        noted = moments.setdefault(description, [])

        def step(count: int) -> None:
            del count
            noted.append(time.process_time())

        yield step

    return progress


def middle(moments: list[float]) -> float:
    """The median of what lies between moments, the first left out."""
    spans = [later - one for one, later in pairwise(moments)]
    return statistics.median(spans[1:])
