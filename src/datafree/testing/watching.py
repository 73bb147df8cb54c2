"""Watching a method from outside: what it leaves changed, and what an interruption does."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

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


class ShortOfMemory(TorchFunctionMode):
    """While it lasts, memory runs out in convolutions of more than `most` images, as on a CPU.

    Attributes:
        denied: how often.
    """

    def __init__(self, most: int, *, after: int = 0) -> None:
        """Deny from the convolution on that follows `after` others of more images than `most`."""
        super().__init__()
        self.most, self.after, self.denied = most, after, 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """See `torch.overrides.TorchFunctionMode`."""
        count = args[0].shape[0] if func is torch.conv2d else 0
        if isinstance(count, int) and count > self.most:  # any number, while a network is captured
            self.after -= 1
            if self.after < 0:
                self.denied += 1
                raise RuntimeError(
                    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: not enough"
                    f" memory: you tried to allocate {4 * args[0].numel()} bytes."
                )
        return func(*args, **(kwargs or {}))


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
