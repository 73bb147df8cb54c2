"""What a network returns, and what it means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from datafree.config.base import Frozen

Kind = Literal["classes", "one_logit", "dense_classes", "values"]
"""Meaning of one tensor: logits of classes; one logit of two classes; logits at every position,
along the first dimension of an image's tensor; numbers without classes."""
Task = Literal["classes", "dense", "values"]
"""What a user says of a network: one answer an image, one at every position, or numbers."""


class Output(Frozen):
    """One tensor that a network returns."""

    name: str
    """Where it stands in what the network returns: `logits`, `heads.0`."""
    shape: tuple[int, ...]
    """Of one image."""
    kind: Kind
    """What its numbers mean."""

    @property
    def size(self) -> int:
        """Numbers of one image."""
        return math.prod(self.shape)


def kind_of(shape: Sequence[int], task: Task | None, image: Sequence[int]) -> Kind:
    """What a tensor most likely means.

    Args:
        shape: of one image's tensor.
        task: what the user says; None guesses.
        image: (C, H, W) of the network's input; empty where it takes none. A tensor of as many
            channels, or of one, that is as large as the image is taken for an image: values.
    """
    if task == "values" or not shape or (task == "classes" and len(shape) > 1):
        return "values"
    if len(shape) == 1:
        return "one_logit" if shape[0] == 1 else "classes"
    if task == "dense":
        return "dense_classes" if shape[0] > 1 else "values"
    picture = not image or (shape[0] == image[0] and tuple(shape[1:]) >= tuple(image[1:]))
    return "dense_classes" if len(shape) == 3 and shape[0] > 1 and not picture else "values"
