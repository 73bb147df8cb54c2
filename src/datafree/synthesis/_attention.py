"""What methods that look at attention share: which tokens are patches, whose heads are whose."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor, fx, nn

from datafree.errors import ModelError
from datafree.graph.attention import find_attention
from datafree.synthesis._pixels import PixelOptimizer

_MOST_PREFIXES = 16
"""Tokens that stand for no patch, at most: classes, distillation, registers."""


class AttentionMethod(PixelOptimizer):
    """Base of methods that need attention in the network."""

    needs_attention: ClassVar[bool] = True

    def check(self, teacher: nn.Module) -> None:
        """Refuse a network without attention.

        Raises:
            ModelError: no attention; names methods that work.
        """
        super().check(teacher)
        if not isinstance(teacher, fx.GraphModule) or not find_attention(teacher):
            raise ModelError(f"{self.name} looks at attention, and this network has none")


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


def patches_of(tokens: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The last tokens of (…, tokens, features) that make a grid: the patches.

    Args:
        tokens: of an image of `shape`, or of a window of it.
        shape: (C, H, W) of the image.
    """
    return tokens[..., prefix_tokens(tokens.shape[-2], shape) :, :]


def prefix_tokens(count: int, shape: tuple[int, ...]) -> int:
    """How many of `count` tokens stand before the patches: the fewest that leave a grid.

    197 tokens of a square image are a class and 14 by 14 patches; 49 are a window of 7 by 7 and no
    class.

    Args:
        count: tokens of an attention.
        shape: (C, H, W) of the image.
    """
    tried = range(min(_MOST_PREFIXES, count - 1) + 1)
    return next((n for n in tried if _grid(count - n, shape) is not None), 0)


def grid_of(count: int, shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of `count` patches: the image's sides by one number, else a square.

    A single row where they make neither.

    Args:
        count: patches of an image, or of a window of it.
        shape: (C, H, W) of the image.
    """
    return _grid(count, shape) or (1, count)


def _grid(count: int, shape: tuple[int, ...]) -> tuple[int, int] | None:
    height, width = shape[-2:]
    for size in range(1, min(height, width) + 1):
        if (height // size) * (width // size) == count:
            return height // size, width // size
    side = math.isqrt(count)
    return (side, side) if side * side == count else None
