"""Calls as torch's own layers make them, in place of the converter's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_BINARY = frozenset({"add", "sub", "mul", "div", "true_divide", "pow"})
_COMMUTATIVE = frozenset({"add", "mul"})


class RecordError(Exception):
    """A network that cannot be written down for any number of images; the message says why."""


@dataclass(frozen=True)
class Counts:
    """How images are counted.

    Attributes:
        batch: number of images a network is run on, a prime.
        fixed: number of images that its constants were made for.
    """

    batch: int
    fixed: int


@dataclass(frozen=True)
class Call:
    """A function of torch and what it is called with."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def read(self) -> bool:
        """Whether an attribute of a tensor is read."""
        return getattr(self.func, "__name__", "") == "__get__"

    @property
    def name(self) -> str:
        """Name of the function, or of the attribute that it reads."""
        owner = getattr(self.func, "__self__", None) if self.read else self.func
        return getattr(owner, "__name__", "")

    def tensors(self) -> Iterator[Tensor]:
        """All tensors among the arguments."""
        return _tensors((*self.args, *self.kwargs.values()))


def canonical(call: Call, counts: Counts, reads: Callable[[Tensor], bool]) -> Call:
    """`call` in the form that torch's layers have, and for as many images as there are.

    Args:
        call: as the converter makes it.
        counts: how many images there are, and how many the file was made for.
        reads: whether a tensor depends on the images.
    """
    if call.read and call.name in ("T", "mT"):
        return Call(torch.transpose, (call.args[0], -2, -1), {})
    if call.name in ("clamp", "clip"):
        return _clamp(call)
    if call.name in _BINARY and len(call.args) == 2:
        return _binary(call, reads)
    if call.name == "__getitem__":
        return replace(call, args=(call.args[0], _index(call.args[1], reads)))
    if counts.fixed != counts.batch and call.name in ("reshape", "view"):
        return _reshape(call, counts)
    if counts.fixed != counts.batch and call.name in ("cat", "concat"):
        return _cat(call, counts, reads)
    return call


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, slice):
        yield from _tensors((values.start, values.stop, values.step))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


def _clamp(call: Call) -> Call:
    """A clamp between two numbers as the activation it is."""
    given = dict(zip(("input", "min", "max"), call.args, strict=False)) | call.kwargs
    low, high = (_bound(given.get(side)) for side in ("min", "max"))
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return call
    source = given.get("input", call.args[0])
    if low == 0 and high in (None, math.inf):
        return Call(F.relu, (source,), {})
    if low is None or high is None:
        return Call(torch.clamp, (source,), {"min": low, "max": high})
    if (low, high) == (0, 6):
        return Call(F.relu6, (source,), {})
    return Call(F.hardtanh, (source, low, high), {})


def _bound(value: Any) -> Any:
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value)
    return value


def _binary(call: Call, reads: Callable[[Tensor], bool]) -> Call:
    """A constant of one value as a number, which a float32 is exactly; the other operand first."""
    first, second = call.args
    if call.name in _COMMUTATIVE and isinstance(first, Tensor) and not reads(first):
        first, second = second, first
    constant = isinstance(second, Tensor) and isinstance(first, Tensor) and not reads(second)
    if constant and second.numel() == 1 and second.ndim <= first.ndim:
        second = second.item()
    return replace(call, args=(first, second))


def _index(value: Any, reads: Callable[[Tensor], bool]) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_index(item, reads) for item in value)
    if isinstance(value, Tensor) and value.ndim == 0 and not reads(value):
        return int(value)
    return value


def _reshape(call: Call, counts: Counts) -> Call:
    """A reshape whose sizes were written down for another number of images.

    Values keep their order, so what stands before the images stands before them afterwards too:
    the size that counts images is the first one behind as many values.
    """
    source, *sizes = call.args
    given = sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
    wanted = [int(size) for size in given]
    total = source.numel()
    if total % counts.batch:
        return call
    before = total // counts.batch * counts.fixed  # values that the file reckons with
    if -1 in wanted:
        known = math.prod(size for size in wanted if size != -1)
        wanted[wanted.index(-1)] = before // known if known else 0
    if math.prod(wanted) != before:
        return call
    place = _place(tuple(source.shape), wanted, counts)
    if place is None:
        sizes = tuple(int(size) for size in given)
        raise RecordError(f"a reshape to {sizes} is written for {counts.fixed} images")
    wanted[place] = wanted[place] // counts.fixed * counts.batch
    return Call(torch.reshape, (source, tuple(wanted)), {})


def _place(shape: tuple[int, ...], wanted: list[int], counts: Counts) -> int | None:
    """Which of the sizes `wanted` counts images; None where none does."""
    at = next((place for place, size in enumerate(shape) if size % counts.batch == 0), None)
    if at is None:
        return None
    ahead = math.prod(shape[:at])
    fitting = [
        place
        for place, size in enumerate(wanted)
        if math.prod(wanted[:place]) == ahead and size % counts.fixed == 0
    ]
    return at if at in fitting else next(iter(fitting), None)


def _cat(call: Call, counts: Counts, reads: Callable[[Tensor], bool]) -> Call:
    """A concatenation with a constant that stands once for each of the images of the file."""
    tensors = list(call.args[0])
    counted = next(tensor for tensor in tensors if reads(tensor))
    axis = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else 0) % counted.ndim
    for place, tensor in enumerate(tensors):
        for dim, size in enumerate(counted.shape):
            if dim != axis and size == counts.batch and tensor.shape[dim] == counts.fixed:
                one = tensor.narrow(dim, 0, 1)
                if not reads(tensor) and torch.equal(one.expand_as(tensor), tensor):
                    sizes = [size if other == dim else -1 for other in range(tensor.ndim)]
                    tensors[place] = one.expand(sizes)
    return Call(torch.cat, (tensors,), {"dim": axis})
