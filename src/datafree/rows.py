"""Activations of all images at one place of the network, in memory or on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

_CHUNK = 64


class Rows:
    """N samples of one shape, written once and read by index.

    4-d samples are kept channels-last, so that picking rows gives tensors convolutions are fast on.

    Attributes:
        count: N.
        device: of the network; samples are given out there.
    """

    def __init__(self, count: int, sample: Tensor, limit: int) -> None:
        """Allocate room for `count` samples like `sample` (B, …); beyond `limit` bytes on disk."""
        self.count = count
        self._last = sample.ndim == 4
        self._shape = sample.permute(0, 2, 3, 1).shape[1:] if self._last else sample.shape[1:]
        values = count * self._shape.numel()
        self._flat = _allocate(values, limit).view(count, -1)
        self.device = sample.device

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """The chosen samples (B, …) on the device of the network."""
        return self._restored(self._flat[index].to(self.device))

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """All samples in order, some at a time, with the place they have."""
        for start in range(0, self.count, _CHUNK):
            part = slice(start, min(start + _CHUNK, self.count))
            yield part, self[part]

    def write(self, part: slice, values: Tensor) -> None:
        """Store samples."""
        ordered = values.permute(0, 2, 3, 1) if self._last else values
        self._flat[part] = ordered.detach().flatten(1).cpu()

    def _restored(self, flat: Tensor) -> Tensor:
        shaped = flat.view(len(flat), *self._shape)
        return shaped.permute(0, 3, 1, 2) if self._last else shaped


def passed(function: Callable[[Tensor], Tensor], rows: Rows, limit: int) -> Rows:
    """`function` of all samples, without gradients; `limit` as in `Rows`."""
    result: Rows | None = None
    with torch.no_grad():
        for part, values in rows.chunks():
            outputs = function(values)
            result = result or Rows(rows.count, outputs, limit)
            result.write(part, outputs)
    assert result is not None  # noqa: S101 - there is at least one sample
    return result


def stored(values: Tensor, device: torch.device, limit: int) -> Rows:
    """`values` (N, …) as rows for a network on `device`."""
    rows = Rows(len(values), values[:1].to(device), limit)
    for start in range(0, len(values), _CHUNK):
        rows.write(slice(start, start + _CHUNK), values[start : start + _CHUNK])
    return rows


def share(memory_gb: float, tensors: int) -> int:
    """The limit in bytes of one of `tensors` rows that together take `memory_gb` of memory."""
    return int(memory_gb * 2**30 / tensors)


def _allocate(values: int, limit: int) -> Tensor:
    if 4 * values <= limit:
        return torch.empty(values)
    with tempfile.TemporaryDirectory() as folder:
        # The mapping outlives the name: the disk space is given back with the tensor.
        return torch.from_file(str(Path(folder) / "rows"), shared=True, size=values)
