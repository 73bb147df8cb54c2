"""ZeroQ's distilled data (algorithms A.1; Cai et al., CVPR 2020)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from datafree.synthesis._images import Alignment, ImageOptimizer
from datafree.synthesis.base import Batch


class ZeroQ(ImageOptimizer):
    """Match every image's own statistics to those the batch norms stored.

    ``min_x 1/B sum_n sum_l |mean_ln - mu_l|^2 + |std_ln - sigma_l|^2``, where l = 0 is the input
    with mean 0 and deviation 1. The released code starts from nearly zero: ``start=tiny``. With
    ``correlation_weight=1`` it is the row "SCI alone" of DSG's ablation.
    """

    citation: ClassVar[str] = (
        "Cai et al. (2020), ZeroQ: A Novel Zero Shot Quantization Framework, CVPR"
    )
    settled_steps: ClassVar[int] = 403

    batch_size: int = Field(default=32, ge=1)
    """Images optimised together, at most."""

    def batch_images(self, teacher: nn.Module, count: int) -> int:
        """`batch_size`, or fewer where fewer are wanted."""
        del teacher
        return min(self.batch_size, count)

    def alignment(self, layers: int, batch: Batch, state: Any) -> Alignment:
        """No margin, equal weights."""
        del batch, state
        return Alignment(torch.zeros(layers), torch.zeros(layers), torch.ones(1, 1))
