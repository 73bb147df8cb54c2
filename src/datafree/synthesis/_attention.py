"""What methods that look at attention share: which tokens are patches, whose heads are whose."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor

from datafree.synthesis._pixels import PixelOptimizer

_MOST_PREFIXES = 16
"""Tokens that stand for no patch, at most: classes, distillation, registers."""


class AttentionMethod(PixelOptimizer):
    """Base of methods that need attention in the network."""

    needs_attention: ClassVar[bool] = True


def by_image(values: Tensor, count: int) -> Tensor:
    """(B w, heads, tokens, features) of what an attention returned for `count` images.

    Args:
        values: (…, heads, tokens, features), or (B heads, tokens, features) where heads were folded
            into the batch.
        count: B.
    """
    if values.ndim == 3:
        return values.unflatten(0, (count, -1))
    return values.flatten(0, -4) if values.ndim > 4 else values


def prefix_tokens(count: int, shape: tuple[int, ...], *, windows: bool = False) -> int:
    """How many of `count` tokens stand before the patches: the fewest that leave a grid.

    197 tokens of a square image are a class and 14 by 14 patches. Windows have no such tokens: of
    Swin's 49 none is a class.

    Args:
        count: tokens of an attention.
        shape: (C, H, W) of the image.
        windows: each image has several attentions side by side.
    """
    tried = range(min(_MOST_PREFIXES, count - 1) + 1)
    whole = () if windows else tried
    return next((n for n in whole if _grid(count - n, shape) is not None), 0)


def grid_of(count: int, shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of `count` patches: the image's sides by one number, else a square.

    A single row where they make neither.

    Args:
        count: patches of an image, or of a window of it.
        shape: (C, H, W) of the image.
    """
    side = math.isqrt(count)
    square = (side, side) if side * side == count else (1, count)
    return _grid(count, shape) or square


def _grid(count: int, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Sides of the image by one number, if they make `count` patches."""
    height, width = shape[-2:]
    grids = ((height // size, width // size) for size in range(1, min(height, width) + 1))
    return next((grid for grid in grids if grid[0] * grid[1] == count), None)
