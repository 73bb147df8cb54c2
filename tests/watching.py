"""Watching a run from outside: what Adam was given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor


class Watched:
    """Adam that keeps the images, gradients and rates it is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images: list[Tensor] = []
        self.gradients: list[Tensor] = []
        self.rates: list[float] = []
        watched, step = self, torch.optim.Adam.step

        def spy(self: torch.optim.Adam, *arguments: Any) -> Any:
            (group,) = self.param_groups
            (pixels,) = group["params"]
            watched.rates.append(group["lr"])
            watched.images.append(pixels.detach().clone().contiguous())
            watched.gradients.append(pixels.grad.clone().contiguous())
            return step(self, *arguments)

        monkeypatch.setattr(torch.optim.Adam, "step", spy)
