"""Watching a method from outside: what it leaves changed, and what an interruption does."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import nn

from datafree.progress import Step

_WAYS = ("forward", "backward")


class Counter:
    """A progress that counts, and after `stop_at` units interrupts everything, as Ctrl-C would."""

    def __init__(self, stop_at: int | None = None) -> None:
        """Count; see the class for `stop_at`."""
        self.done, self.total, self.stop_at = 0, 0, stop_at
        self.descriptions: list[str] = []

    @contextmanager
    def __call__(self, description: str, total: int) -> Generator[Step]:
        """Open a bar; a `datafree.progress.Progress`."""
        self.descriptions.append(description)
        self.total += total

        def step(done: int) -> None:
            self.done += done
            if self.stop_at is not None and self.done >= self.stop_at:
                raise KeyboardInterrupt

        yield step


def fingerprint(module: nn.Module) -> dict[str, Any]:
    """All of a module that others must leave alone: tensors, flags and numbers of hooks."""
    marks: dict[str, Any] = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        content = hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()
        grad = None if tensor.grad is None else tensor.grad.sum().item()
        place = (id(tensor), tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        marks[name] = (place, content, tensor.requires_grad, grad)
    kinds = ("", "_pre")
    for name, child in module.named_modules():
        hooks = [getattr(child, f"_{way}{kind}_hooks") for way in _WAYS for kind in kinds]
        hooks.append(child.__dict__["_state_dict_hooks"])
        marks[f"module {name}"] = (child.training, [len(h) for h in hooks])
    return marks
