"""Activations of all images at one place of the network, in memory or on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from datafree.errors import ModelError
from datafree.tensors.memory import Portion, free_bytes

T = TypeVar("T")
Chunks = Iterator[tuple[slice, Tensor]]
"""Samples in order, some at a time, with the place they have."""
_CHUNK = 64


class Rows:
    """N samples of one shape, written once and read by index.

    A sample has one row or, where an image is cut into windows, several of them. 4-d samples are
    kept channels-last, so that picking rows gives tensors convolutions are fast on.

    Attributes:
        count: N.
        device: of the network; samples are given out there.
        together: samples that pass a part of the network at once, at most.
    """

    def __init__(self, count: int, sample: Tensor, limit: int, each: int = 1) -> None:
        """Allocate room for samples.

        Args:
            count: N.
            sample: (B, …), some rows like those to come.
            limit: bytes they may take in memory; beyond, they are kept on disk.
            each: rows that make one sample.
        """
        self.count = count
        self.together = min(_CHUNK, count)
        self._each = each
        self._last = sample.ndim == 4
        self._shape = sample.permute(0, 2, 3, 1).shape[1:] if self._last else sample.shape[1:]
        values = count * each * self._shape.numel()
        self._flat = _allocate(values, limit).view(count, -1)
        self.device = sample.device

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """The rows of the chosen samples, (B, …), on the device of the network."""
        if isinstance(index, slice):
            return self._restored(self._flat[index].to(self.device))
        # Brackets would copy every value by itself.
        return self._restored(torch.index_select(self._flat, 0, index).to(self.device))

    def through(self, work: Callable[[Chunks], T]) -> T:
        """What `work` returns for all samples, some at a time.

        Where memory runs out it begins again, from now on with half as many, and has to leave
        nothing behind then.

        Raises:
            NoRoomError: not even one fits.
        """
        portion = Portion("a pass through a part of the network", self.together)
        found = portion.fit(lambda size: work(self.chunks(size)))
        self.together = portion.size
        return found

    def chunks(self, size: int) -> Chunks:
        """All samples in order, `size` at a time."""
        for start in range(0, self.count, size):
            part = slice(start, min(start + size, self.count))
            yield part, self[part]

    def write(self, part: slice, values: Tensor) -> None:
        """Store samples."""
        ordered = values.permute(0, 2, 3, 1) if self._last else values
        samples = ordered.detach().reshape(len(values) // self._each, -1)
        self._flat[part] = samples.cpu()

    def _restored(self, flat: Tensor) -> Tensor:
        shaped = flat.view(len(flat) * self._each, *self._shape)
        return shaped.permute(0, 3, 1, 2) if self._last else shaped


def passed(function: Callable[[Tensor], Tensor], rows: Rows, limit: int) -> Rows:
    """`function` of all samples, without gradients; `limit` as in `Rows`."""

    @torch.no_grad()
    def work(chunks: Chunks) -> Rows:
        result: Rows | None = None
        for part, values in chunks:
            outputs = function(values)
            each, rest = divmod(len(outputs), part.stop - part.start)
            if rest:
                raise ModelError(
                    f"{len(outputs)} rows of {part.stop - part.start} images: inside a block of"
                    " this network images are not the first dimension; reconstruct it with the"
                    " options unit=block and max_layers=1000"
                )
            result = result or Rows(rows.count, outputs, limit, each)
            result.write(part, outputs)
        assert result is not None  # noqa: S101 - there is at least one sample
        return result

    result = rows.through(work)
    result.together = rows.together
    return result


def stored(values: Tensor, device: torch.device, limit: int) -> Rows:
    """`values` (N, …) as rows for a network on `device`."""
    rows = Rows(len(values), values[:1].to(device), limit)
    for start in range(0, len(values), _CHUNK):
        rows.write(slice(start, start + _CHUNK), values[start : start + _CHUNK])
    return rows


def share(memory_gb: float, tensors: int) -> int:
    """The limit in bytes of one of `tensors` rows that together take `memory_gb` of memory.

    Half of what is free where that is less: what lies on disk is the same.
    """
    free = free_bytes(torch.device("cpu"))
    most = memory_gb * 2**30
    return int((most if free is None else min(most, free / 2)) / tensors)


def _allocate(values: int, limit: int) -> Tensor:
    if 4 * values <= limit:
        return torch.empty(values)
    with tempfile.TemporaryDirectory() as folder:
        # The mapping outlives the name: the disk space is given back with the tensor.
        return torch.from_file(str(Path(folder) / "rows"), shared=True, size=values)
