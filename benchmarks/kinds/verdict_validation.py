"""How good the estimate is on a network that it was not fitted on."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks.kinds.base import Bench, Kind
from benchmarks.record import latest
from benchmarks.table import load_tables
from benchmarks.verdict_fit import Row, Told, leave_one_out
from datafree.config import RunConfig

SMALL = 5.0
"""Points: of losses up to this the mean error is told."""
RESOLVED = 1.0
"""Points: losses from this on are more than noise of the test images."""


class VerdictValidation(Kind):
    """Ranks, errors, coverage and words over the records of the table `verdict`.

    Every network is left out in turn, intervals and all.
    """

    network: str | None = None
    """Of the students that are looked at; None looks at all that the fit looks at."""

    def measure(self, config: RunConfig, bench: Bench) -> dict[str, Any]:
        """See the base class."""
        del config
        told = leave_one_out(rows_of(bench))
        all_of_them = self.network is None
        own = [t for t in told if (t.row.fitted if all_of_them else t.row.network == self.network)]
        return summary(own)


def rows_of(bench: Bench) -> list[Row]:
    """All students that were measured, in the order of their table."""
    table = load_tables(bench.place.house / "tables")["verdict"]
    found = latest(table, bench.place)
    return [Row.of(found[cell]) for cell in table.wanted() if cell in found]


def summary(told: list[Told]) -> dict[str, Any]:
    """Of students in percent and points.

    ``rank`` is Spearman's correlation of estimated and true loss, ``rank_lossy`` that of students
    that lose `RESOLVED` points or more, ``small_error`` the mean absolute error where the true loss
    is under `SMALL`.
    """
    true = np.array([one.row.loss for one in told])
    guess = np.array([one.verdict.loss for one in told])
    small, lossy = true < SMALL, true >= RESOLVED
    good = [one.row.loss for one in told if one.verdict.word == "good"]
    words = {word: sum(one.verdict.word == word for one in told) for word in _WORDS}
    return {
        "cells": len(told),
        "rank": _rank(true, guess),
        "rank_lossy": _rank(true[lossy], guess[lossy]),
        "small_error": float(np.abs(true - guess)[small].mean()) if small.any() else None,
        "small_cells": int(small.sum()),
        "covered": 100 * sum(one.covered for one in told) / len(told),
        "missed": [f"{t.row.network} {t.row.name}" for t in told if not t.covered],
        "worst_good": max(good, default=None),
        **words,
        "told": [
            {
                "network": one.row.network, "student": one.row.name, "true": one.row.loss,
                "estimate": one.verdict.loss, "low": one.verdict.low, "high": one.verdict.high,
                "word": one.verdict.word,
            }
            for one in told
        ],
    }  # fmt: skip


_WORDS = ("good", "check", "poor")


def _rank(first: Any, second: Any) -> float | None:
    if len(first) < 3 or len(set(first)) < 2 or len(set(second)) < 2:
        return None
    found: Any = spearmanr(first, second)
    return float(found.statistic)
