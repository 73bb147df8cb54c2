"""Losses of ZeroQ and Genie written straight from algorithms A.1 and A.6.1, with own hooks."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def batch_norm_inputs(model: nn.Module, x: Tensor) -> list[tuple[nn.Module, Tensor]]:
    """Batch norms of `model` with their inputs, in execution order."""
    seen: list[tuple[nn.Module, Tensor]] = []
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    handles = [
        norm.register_forward_hook(lambda module, inputs, _: seen.append((module, inputs[0])))
        for norm in norms
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return seen


def layer_losses(model: nn.Module, x: Tensor) -> Tensor:
    """(N, B) squared distances of every image's statistics from the stored ones."""
    rows: list[Tensor] = []
    for norm, feature in batch_norm_inputs(model, x):
        target_std = (norm.running_var + 1e-6).sqrt()  # pyright: ignore
        losses: list[Tensor] = []
        for image in feature:
            values = image.flatten(1)
            std = (values.var(1) + 1e-6).sqrt()
            mean_gap = values.mean(1) - norm.running_mean  # pyright: ignore
            losses.append((mean_gap**2).sum() + ((std - target_std) ** 2).sum())
        rows.append(torch.stack(losses))
    return torch.stack(rows)


def input_loss(x: Tensor) -> Tensor:
    """Layer 0: mean 0 and deviation 1 of every image and colour."""
    losses: list[Tensor] = []
    for image in x:
        values = image.flatten(1)
        std = (values.var(1) + 1e-6).sqrt()
        losses.append((values.mean(1) ** 2).sum() + ((std - 1) ** 2).sum())
    return torch.stack(losses).mean()


def zeroq_loss(model: nn.Module, x: Tensor) -> Tensor:
    """The objective of A.1."""
    return layer_losses(model, x).sum(0).mean() + input_loss(x)


def genie_loss(model: nn.Module, x: Tensor) -> Tensor:
    """The objective of A.6.1 without swing, for networks whose batch norms are `BatchNorm2d`."""
    total = input_loss(x)
    for norm, feature in batch_norm_inputs(model, x):
        target_std = (norm.running_var + 1e-6).sqrt()  # pyright: ignore
        channels = feature.shape[1]
        for c in range(channels):
            values = feature[:, c].flatten()
            std = (values.var() + 1e-6).sqrt()
            mean_gap = values.mean() - norm.running_mean[c]  # pyright: ignore
            total = total + (mean_gap**2 + (std - target_std[c]) ** 2) / channels
    return total
