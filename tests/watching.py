"""Watching a run from outside: what Adam was given, what the progress was told."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from datafree.progress import Step


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


class Counter:
    """A progress that counts, and after `stop_at` units interrupts everything, as Ctrl-C would."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.done, self.total, self.stop_at = 0, 0, stop_at
        self.descriptions: list[str] = []

    @contextmanager
    def __call__(self, description: str, total: int) -> Generator[Step]:
        self.descriptions.append(description)
        self.total += total

        def step(done: int) -> None:
            self.done += done
            if self.stop_at is not None and self.done >= self.stop_at:
                raise KeyboardInterrupt

        yield step
