"""From what two networks return to a verdict, whatever their task is."""

from __future__ import annotations

import torch
from torch import Tensor

from datafree.losses import Heads, class_rows, relative_error, values
from datafree.verdict.estimate import Verdict, estimate, estimate_numbers
from datafree.verdict.features import Features, judged_features

_ROWS = 65_536
"""Positions of classes at every position that are looked at, evenly spread."""
_PARTS = 4
"""Parts of the images whose errors differ, for the interval of numbers without classes."""


def judge(
    teacher: Tensor, student: Tensor, heads: Heads = (), worst_layer_db: float | None = None
) -> tuple[Verdict, Features | None]:
    """The verdict on a student, and the features it was made from, which only classes have.

    Classes are those of the first output that has some; one logit has two, told by its sign. Of
    classes at every position a position counts as an image does. Of numbers without classes the
    worst output counts.

    Args:
        teacher: what it returned for held-out images, a row for each.
        student: likewise, of the same images.
        heads: what both are, if more than logits.
        worst_layer_db: least signal-to-noise ratio of a quantized layer, if known.
    """
    classes = list(zip(class_rows(teacher, heads), class_rows(student, heads), strict=True))
    if not classes:
        numbers = zip(values(student, heads), values(teacher, heads), strict=True)
        worst = max((_error(*pair) for pair in numbers), key=lambda found: found[0])
        return estimate_numbers(*worst), None
    wanted, found = classes[0]
    step = -(-len(wanted) // _ROWS)
    told = judged_features(wanted[::step], found[::step], worst_layer_db)
    # Positions of one image are alike: they are no more images.
    told = told.model_copy(update={"images": min(told.images, len(teacher))})
    return estimate(told), told


def _error(actual: Tensor, expected: Tensor) -> tuple[float, float, float]:
    """Relative error of numbers, and its least and greatest on parts of the images."""
    whole = float(relative_error(actual, expected).sqrt())
    if len(actual) < 2 * _PARTS:
        return whole, whole, whole
    actual, expected = actual.double(), expected.double()
    pieces = zip(actual.chunk(_PARTS), expected.chunk(_PARTS), strict=True)
    scale = (expected - expected.mean(0)).square().mean(0).sum().clamp(min=1e-60)
    each = torch.stack([(a - e).square().mean(0).sum() / scale for a, e in pieces]).sqrt()
    return whole, float(each.min()), float(each.max())
