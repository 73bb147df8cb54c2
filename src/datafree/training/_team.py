"""The processes that train together, and the precision they compute in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from datafree.errors import ConfigError


class Team:
    """One process that computes in float32: nothing has to be agreed on.

    Attributes:
        rank: of this process; that of the first is 0.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    def computing(self) -> AbstractContextManager[Any]:
        """The context of forward passes."""
        return nullcontext()

    def mean(self, gradients: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """Every gradient averaged over the processes."""
        return gradients

    def first_says(self, number: float) -> float:
        """What the first process says, for decisions all have to take alike."""
        return number

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite `tensors` by those of the first process."""
        del tensors

    def wait(self) -> None:
        """Go on when all processes are here."""


class AcceleratedTeam(Team):
    """Several processes, one per GPU, or bfloat16, by way of Hugging Face accelerate.

    Start one process per GPU with ``accelerate launch`` or ``torchrun``; every process dreams its
    own share of a batch, gradients are averaged and the first process judges and writes. Batch
    statistics are those of a process's share.
    """

    def __init__(self, *, cpu: bool, precision: str) -> None:
        """Join the processes that were started; see the class.

        Args:
            cpu: compute on processors.
            precision: `fp32` or `bf16`.

        Raises:
            ConfigError: accelerate is not installed.
        """
        try:
            from accelerate import Accelerator
        except ImportError:
            raise ConfigError(
                "several processes and --precision bf16 need Hugging Face accelerate: pip install"
                " 'datafree[train]'"
            ) from None
        mixed = "bf16" if precision == "bf16" else "no"
        self._accelerator = Accelerator(cpu=cpu, mixed_precision=mixed)
        self.rank = self._accelerator.process_index
        self.size = self._accelerator.num_processes

    def computing(self) -> AbstractContextManager[Any]:
        """Autocast, where the precision is mixed."""
        return self._accelerator.autocast()

    def mean(self, gradients: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """One message for all gradients."""
        if self.size == 1:
            return gradients
        present = [gradient for gradient in gradients if gradient is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in present])
        torch.distributed.all_reduce(flat)
        parts = iter((flat / self.size).split([gradient.numel() for gradient in present]))
        return [None if g is None else next(parts).view(g.shape) for g in gradients]

    def first_says(self, number: float) -> float:
        """Broadcast from the first process."""
        told = torch.tensor(number, dtype=torch.float64, device=self._device())
        self.share([told])
        return float(told)

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Broadcast from the first process, in place."""
        if self.size == 1:
            return
        for tensor in tensors:
            here = tensor.detach().to(self._device()).contiguous()
            torch.distributed.broadcast(here, src=0)
            tensor.detach().copy_(here)

    def wait(self) -> None:
        """A barrier."""
        self._accelerator.wait_for_everyone()

    def _device(self) -> torch.device:
        return self._accelerator.device


def gather_team(device: torch.device, precision: str) -> Team:
    """The team this process belongs to.

    Args:
        device: to compute on.
        precision: `fp32` or `bf16`.

    Raises:
        ConfigError: accelerate is needed and not installed.
    """
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if alone and precision == "fp32":
        return Team()
    return AcceleratedTeam(cpu=device.type == "cpu", precision=precision)
