"""Too little memory: what is free, what tells that it ran out, and half as much at a time.

Everything that passes several images through a network together asks a `Portion` how many.
"""

from __future__ import annotations

import gc
import resource
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from datafree.errors import MemoryWarning, NoRoomError

T = TypeVar("T")
_SIGNS = ("not enough memory", "can't allocate memory", "out of memory", "bad allocation",
          "bad_alloc")  # fmt: skip
"""What torch and the libraries below it say; in capitals or not."""
_SHARE = 0.8
"""Of the free memory that is planned with; the rest is for what nobody counted."""
_INFINITE = 2**60  # limits beyond it are none


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on the processor or on a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    told = str(error).lower() if isinstance(error, RuntimeError) else ""
    return any(sign in told for sign in _SIGNS)


@dataclass
class Portion:
    """How many items are worked on together: half as many whenever memory runs out.

    Attributes:
        what: is done, for people: ``calibration``.
        size: items together, from now on.
        least: that can be worked on together.
        remedy: what to do where not even those fit.
    """

    what: str
    size: int
    least: int = 1
    remedy: str = "free memory, take a smaller network, or use a machine that has more"

    def fit(self, work: Callable[[int], T]) -> T:
        """What `work` returns for `size` items together, or for fewer where those do not fit.

        It begins again each time, so that the result is that of a call with the smaller size, and
        it has to leave nothing behind where it is interrupted.

        Raises:
            NoRoomError: not even `least` items fit.
        """
        while True:
            try:
                return work(self.size)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                told = str(error)
            # Only here is the traceback gone, and with it the tensors it held.
            self.halve(told)

    def halve(self, told: str = "") -> None:
        """Go on with half as many, and say so in one line.

        Args:
            told: the error that made it necessary.

        Raises:
            NoRoomError: there are `least` already.
        """
        release()
        if self.size <= self.least:
            images = "one image" if self.least == 1 else f"{self.least} images"
            raise NoRoomError(
                f"{self.what}: there is not enough memory for {images} at a time"
                f" ({_first_line(told) or 'memory ran out'}): {self.remedy}"
            )
        before, self.size = self.size, max(self.least, self.size // 2)
        warnings.warn(
            f"{self.what}: {before} at a time did not fit into memory, going on with {self.size}",
            MemoryWarning,
            stacklevel=2,
        )

    def afford(self, each: float, free: float | None) -> Portion:
        """This portion, halved until its items, of `each` bytes, fit into `free` bytes.

        None is unknown. Nothing changes, and nothing is said, where there is enough.
        """
        before = self.size
        while free is not None and self.size > self.least and self.size * each > _SHARE * free:
            self.size = max(self.least, self.size // 2)
        if self.size < before:
            warnings.warn(
                f"{self.what}: {self.size} at a time instead of {before}, by the"
                f" {(free or 0) / 1e9:.2g} GB of memory that are free",
                MemoryWarning,
                stacklevel=2,
            )
        return self


def release() -> None:
    """Give back what nobody holds any more, on the processor and on GPUs."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def free_bytes(device: torch.device, root: Path = Path("/")) -> int | None:
    """Bytes that can still be had on `device`; None where the system does not say.

    On a GPU what CUDA has free, and what torch keeps without using it. On the processor the least
    of what the system has available (Linux), what the limits of the process' control groups leave,
    and what the limit of its own address space leaves.

    Args:
        device: of the network.
        root: of the file system.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type != "cpu":
        return None
    left = [*_available(root), *_left_in_groups(root), *_left_of_addresses(root)]
    return max(0, min(left)) if left else None


def _available(root: Path) -> Iterator[int]:
    """What `/proc/meminfo` calls available, if it is there."""
    for line in _lines(root / "proc/meminfo"):
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            yield 1024 * int(rest.split()[0])


def _left_in_groups(root: Path) -> Iterator[int]:
    """What every control group of the process leaves, by both versions of their files.

    In a container the group's own files stand at the top, whatever name it has outside.
    """
    mounted = root / "sys/fs/cgroup"
    folders = {mounted: "v2", mounted / "memory": "v1"}
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = mounted / controllers
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            if folder == top or top not in folder.parents:
                break
            folders[folder] = "v1" if controllers else "v2"
    for folder, version in folders.items():
        names = ("memory.max", "memory.current", "inactive_file")
        if version == "v1":
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        limit, used = (_number(folder / name) for name in names[:2])
        if limit is None or used is None or limit > _INFINITE:
            continue
        # Pages of files that nobody uses are given up first.
        spare = (line.split() for line in _lines(folder / "memory.stat"))
        yield limit - used + sum(int(value) for name, value in spare if name == names[2])


def _left_of_addresses(root: Path) -> Iterator[int]:
    """What `ulimit -v` leaves."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    pages = next(iter(_lines(root / "proc/self/statm")), "").split()
    if limit != resource.RLIM_INFINITY and pages:
        yield limit - int(pages[0]) * resource.getpagesize()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    """The number in a file; None without the file, or where it says ``max``."""
    first = next(iter(_lines(path)), "")
    return int(first) if first.isdigit() else None


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:120].rstrip(" .:")
