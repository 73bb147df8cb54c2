"""Reading what a network returns: classes, classes at every position, numbers.

A graph returns one tensor: (B, K) logits of a classifier, or all that a network returns side by
side, (B, numbers), which `heads` then tells apart. No heads means logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from datafree.config.outputs import Output

Heads = Sequence[Output]
_FLOOR = 1e-12
_SMALLEST = 1e-30


def class_logits(logits: Tensor) -> Tensor:
    """Logits of classes, (B, K): of a network with one logit z those of two classes, 0 and z.

    Their softmax is ``1 - sigmoid(z)`` and ``sigmoid(z)``, so that no loss or measure is constant:
    a positive logit is class 1.

    Args:
        logits: (B, K), K at least 1.
    """
    if logits.shape[1] > 1:
        return logits
    return torch.cat((torch.zeros_like(logits), logits), 1)


def parts(outputs: Tensor, heads: Heads) -> list[Tensor]:
    """The tensors that stand side by side in (B, numbers), each ``(B, *shape)``."""
    if not heads:
        return [outputs]
    pieces = outputs.split([head.size for head in heads], 1)
    return [piece.unflatten(1, head.shape) for piece, head in zip(pieces, heads, strict=True)]


def class_rows(outputs: Tensor, heads: Heads = ()) -> list[Tensor]:
    """Logits of classes of every head that has some, (R, K): a row for every image or position."""
    if not heads:
        return [class_logits(outputs)]
    return [
        _rows(part)
        for part, head in zip(parts(outputs, heads), heads, strict=True)
        if head.kind != "values"
    ]


def values(outputs: Tensor, heads: Heads = ()) -> list[Tensor]:
    """The heads that are numbers without classes, (B, numbers) each."""
    if not heads:
        return []
    found = zip(parts(outputs, heads), heads, strict=True)
    return [part.flatten(1) for part, head in found if head.kind == "values"]


def first_logits(outputs: Tensor, heads: Heads = ()) -> Tensor:
    """Logits (B, K) of a network that says which class an image is of."""
    if not heads:
        return class_logits(outputs)
    found = zip(parts(outputs, heads), heads, strict=True)
    return class_logits(next(part for part, head in found if head.kind != "values"))


def relative_error(actual: Tensor, expected: Tensor) -> Tensor:
    """``sum (a - e)^2 / sum (e - mean e)^2`` over (B, numbers): 0 if equal, 1 as good as the mean.

    The mean is that of every number over the images, or over all where there is but one image.
    Where numbers are the same for all images, their squares are what errors are compared with.
    """
    # Numbers may be of any size, and squares of 1e-20 and 1e20 leave float32.
    size = expected.detach().abs().max().clamp(min=_SMALLEST)
    unit = torch.exp2(torch.floor(torch.log2(size)))
    expected, actual = expected / unit, actual / unit
    centred = expected - expected.mean(0) if len(expected) > 1 else expected - expected.mean()
    floor = _FLOOR * expected.square().sum().clamp(min=_FLOOR)
    return (actual - expected).square().sum() / torch.maximum(centred.square().sum(), floor)


def _rows(part: Tensor) -> Tensor:
    return class_logits(part.movedim(1, -1).flatten(0, -2) if part.ndim > 2 else part)
