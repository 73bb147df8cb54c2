"""Watching tensors inside a graph: context managers that always take their hooks away."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm  # pyright: ignore[reportPrivateUsage]

from datafree.losses import STATISTICS_EPS


def batch_norms(module: nn.Module) -> dict[str, BatchNorm]:
    """The batch-norm layers of `module` by path, in the order they were defined."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, BatchNorm)}


@contextmanager
def tap_batch_norms(module: nn.Module) -> Generator[list[tuple[BatchNorm, Tensor]]]:
    """Collect the *inputs* of the batch-norm layers, in execution order, with their graph.

    The list is emptied at the start of every forward pass of `module`, so after a pass it holds
    that pass.

    Args:
        module: the network; hooks are removed when the context ends, however it ends.
    """
    seen: list[tuple[BatchNorm, Tensor]] = []

    def clear(_: nn.Module, __: Any) -> None:
        seen.clear()

    def record(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, BatchNorm)  # noqa: S101 - hooks are placed on these only
        seen.append((layer, inputs[0]))

    handles = [module.register_forward_pre_hook(clear)]
    handles += [layer.register_forward_pre_hook(record) for layer in batch_norms(module).values()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
        seen.clear()


def last_linear(graph: fx.GraphModule) -> str | None:
    """Path of the linear layer that runs last: the classifier; None if there is none."""
    paths = [str(node.target) for node in graph.graph.nodes if node.op == "call_module"]
    linear = [path for path in paths if isinstance(graph.get_submodule(path), nn.Linear)]
    return linear[-1] if linear else None


def tap_outputs(
    modules: dict[str, nn.Module], use: Callable[[str, Tensor], None]
) -> AbstractContextManager[None]:
    """Call ``use(name, output)`` after every forward pass of each of `modules`.

    Args:
        modules: layers by the name to report.
        use: receives every output tensor, not detached.
    """
    return tap_calls(modules, lambda name, _input, output: use(name, output))


@contextmanager
def tap_calls(
    modules: dict[str, nn.Module], use: Callable[[str, Tensor, Tensor], None]
) -> Generator[None]:
    """Call ``use(name, input, output)`` after every forward pass of each of `modules`.

    Args:
        modules: layers by the name to report.
        use: receives first input and output, neither detached.
    """

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda _module, inputs, output: use(name, inputs[0], output)

    handles = [layer.register_forward_hook(hook(name)) for name, layer in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def stored_statistics(layer: BatchNorm) -> tuple[Tensor, Tensor]:
    """Running mean and ``sqrt(max(running variance, 0) + 1e-6)`` of a batch norm, each (C,)."""
    mean, variance = layer.running_mean, layer.running_var
    assert mean is not None and variance is not None  # noqa: S101 - lifting builds no other kind
    return mean, torch.sqrt(variance.clamp(min=0) + STATISTICS_EPS)
