"""From features to a word: good, check or poor."""

from __future__ import annotations

import math
from typing import Any, Literal

from datafree.config import Frozen
from datafree.verdict.features import Features
from datafree.verdict.model import Model, fitted

Word = Literal["good", "check", "poor"]
WORDS: tuple[Word, ...] = ("good", "check", "poor")
"""From the best to the worst."""

GOOD, POOR = 2.0, 6.0
"""Points: up to the first an estimate is *good*, from the second on it is *poor*."""
GOOD_AT_MOST = 10.0
"""Points: an interval that reaches further is not *good*; that of 29 images always does."""
UNRANKED = 0.5
"""Points: what is estimated to lose less than this cannot be ranked."""
ALWAYS, MUCH_MORE = 0.95, 2.0
"""Share of one answer from which on a student *always* says the same; factor over the teacher's
from which on the share matters."""
GOOD_ERROR, POOR_ERROR = 0.1, 0.3
"""Of numbers without classes: error over their deviation, likewise."""


class Verdict(Frozen):
    """What a student is worth, as far as can be told.

    Attributes in points are of top-1, or of the share of right positions where there are classes at
    every position; of numbers without classes, percent of their deviation.
    """

    word: Word
    loss: float
    """Estimated, in points; of numbers their error."""
    low: float
    """Least that it may be."""
    high: float
    """Most that it may be."""
    unit: Literal["points", "percent of the deviation"]
    """Of the three."""
    ranked: bool
    """Whether two students with such numbers can be told apart."""
    why: str
    """One sentence for people."""
    commonest: float | None = None
    """Share of the student's commonest answer; None without classes."""
    measured: bool = False
    """Whether the loss was measured on labelled images instead of estimated."""

    def reaches(self, word: Word) -> bool:
        """Whether this verdict is `word` or worse."""
        return WORDS.index(self.word) >= WORDS.index(word)


def estimate(found: Features, model: Model | None = None) -> Verdict:
    """The verdict on a student of classes.

    Args:
        found: on held-out images.
        model: instead of the one that comes with the package.
    """
    loss, low, high = (model or fitted()).loss(found)
    low, high = _resolved(low, high, found.images)
    told: dict[str, Any] = {
        "loss": loss,
        "low": low,
        "high": high,
        "unit": "points",
        "commonest": found.commonest,
    }
    if found.commonest >= ALWAYS and found.commonest_teacher < ALWAYS / MUCH_MORE:
        share = f"{100 * found.commonest:.0f} %"
        why = f"it says the same of {share} of all images, whatever they show"
        return Verdict(word="poor", ranked=False, why=why, **told)
    ranked = loss >= UNRANKED
    why = (
        f"about {loss:.1f} points of top-1 are lost, {low:.1f} to {high:.1f}"
        if ranked
        else f"at most about {high:.1f} points of top-1 are lost; so near lossless, students cannot"
        " be ranked without labels"
    )
    return Verdict(word=word_of(loss, high), ranked=ranked, why=f"{why}{_same(found)}", **told)


def measured(teacher: float, student: float, images: int) -> Verdict:
    """The verdict on a student whose top-1, in percent, was measured on `images` with labels.

    The interval is two standard errors of a difference of shares at most, ``sqrt(loss / images)``.
    """
    loss = teacher - student
    error = 200 * math.sqrt(max(abs(loss) / 100, 1 / images) / images)
    low, high = loss - error, loss + error
    return Verdict(
        word=word_of(loss, loss), loss=loss, low=low, high=high, unit="points", ranked=loss > error,
        why=f"{loss:.2f} points were lost on {images} labelled images", measured=True,
    )  # fmt: skip


def estimate_numbers(error: float, low: float, high: float) -> Verdict:
    """The verdict on numbers without classes, which have a scale of their own.

    Args:
        error: square root of their mean square error over their variance; 1 is as good as always
            their mean.
        low: least that it is on a part of the images.
        high: most.
    """
    word: Word = "good" if error <= GOOD_ERROR else "poor" if error >= POOR_ERROR else "check"
    return Verdict(
        word=word, loss=100 * error, low=100 * low, high=100 * high,
        unit="percent of the deviation", ranked=True,
        why=f"its numbers are off by {100 * error:.1f} % of their deviation",
    )  # fmt: skip


def word_of(loss: float, high: float) -> Word:
    """The word for a loss in points whose interval reaches up to `high`."""
    if loss >= POOR:
        return "poor"
    return "good" if loss <= GOOD and high <= GOOD_AT_MOST else "check"


def _resolved(low: float, high: float, images: int) -> tuple[float, float]:
    """An interval that claims no more than so many images can tell.

    What no image shows may still happen to three in their number (the rule of three, at 95 %), and
    less than `UNRANKED` is not told from nothing.
    """
    return (0.0 if low < UNRANKED else low), max(high, 300 / images)


def _same(found: Features) -> str:
    """The share of the commonest answer, where it says something."""
    if found.commonest < MUCH_MORE * found.commonest_teacher:
        return ""
    return (
        f"; its commonest answer has {100 * found.commonest:.0f} %, the teacher's"
        f" {100 * found.commonest_teacher:.0f} %"
    )
