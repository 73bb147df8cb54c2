"""Gaussian noise: the lower bound every other method must beat."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from datafree.config import InputSpec
from datafree.synthesis.base import Batch, Synthesizer


class Noise(Synthesizer):
    """Draw every pixel from ``N(0, 1)`` in normalised space; works on any network."""

    citation: ClassVar[str] = "Common practice; no paper of its own."

    def passes(self, count: int) -> float:
        """The network is not asked."""
        del count
        return 0.0

    def make_batch(
        self, teacher: nn.Module, spec: InputSpec, batch: Batch, state: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Draw one batch; see the base class."""
        del teacher, state
        batch.step(1)
        return torch.randn(batch.size, *spec.shape, generator=batch.generator), None
