"""Batches where memory runs out in the middle of a set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datafree.config import InputSpec
from datafree.errors import MemoryWarning
from datafree.images import SyntheticSet
from datafree.synthesis import base
from datafree.synthesis.base import Batch, Synthesizer
from datafree.synthesis.intraq import IntraQ
from datafree.synthesis.zeroq import ZeroQ
from datafree.testing.watching import Counter, ShortOfMemory
from networks import SPEC, captured

TOLD = "DefaultCPUAllocator: not enough memory: you tried to allocate 5 bytes."


class Drawn(Synthesizer):
    """Noise in batches, of which those from image `full` on may have `most` images."""

    batch_size: int = 8
    full: int = 10**9
    most: int = 10**9

    def batch_images(self, teacher: nn.Module, count: int) -> int:
        del teacher
        return base.even_batches(count, self.batch_size)

    def make_batch(
        self, teacher: nn.Module, spec: InputSpec, batch: Batch, state: Any
    ) -> tuple[Tensor, Tensor | None]:
        del teacher, state
        batch.step(1)
        if batch.start >= self.full and batch.size > self.most:
            raise RuntimeError(TOLD)
        made = torch.randn(batch.size, *spec.shape, generator=batch.generator)
        return made, torch.arange(batch.start, batch.start + batch.size)

    @property
    def name(self) -> str:
        return "drawn"

    def describe(self) -> dict[str, Any]:
        return {"method": "drawn", "batch_size": self.batch_size}


def made(count: int, **options: Any) -> SyntheticSet:
    checkpoint = options.pop("checkpoint", None)
    progress = options.pop("progress", Counter())
    return Drawn(**options).generate(
        captured("Tiny"), SPEC, count, seed=7, checkpoint=checkpoint, progress=progress
    )


@pytest.mark.parametrize(("count", "size", "full"), [(32, 8, 16), (30, 10, 10), (23, 8, 7)])
def test_every_image_is_that_of_its_batch_size(count: int, size: int, full: int) -> None:
    """Also where batches of the smaller size do not begin where the finished ones end."""
    counter = Counter()
    with pytest.warns(MemoryWarning, match="drawn images: .* did not fit") as told:
        found = made(count, batch_size=size, full=full, most=size // 2, progress=counter)
    assert len(told) == 1
    assert counter.done == counter.total
    (_, first), (start, second) = found.metadata["batch_sizes"]
    assert start >= full
    assert torch.equal(found.images[:start], made(count, batch_size=first).images[:start])
    assert torch.equal(found.images[start:], made(count, batch_size=second).images[start:])
    assert found.targets is not None
    assert found.targets.tolist() == list(range(count))


def test_an_interrupted_set_goes_on_in_its_sizes(tmp_path: Path) -> None:
    """Memory is there again, and the images are those of the run that was interrupted."""
    with pytest.warns(MemoryWarning):
        whole = made(32, full=8, most=4)
    with pytest.warns(MemoryWarning), pytest.raises(KeyboardInterrupt):
        made(32, full=8, most=4, checkpoint=tmp_path, progress=Counter(stop_at=3))
    assert (tmp_path / "batch_sizes.json").exists()
    found = made(32, checkpoint=tmp_path)
    assert found.digest() == whole.digest()
    base.Stored.clear(tmp_path)
    assert not tmp_path.exists() or not list(tmp_path.iterdir())


def test_sizes_of_another_set_are_not_taken_up(tmp_path: Path) -> None:
    with pytest.warns(MemoryWarning):
        made(32, full=8, most=4, checkpoint=tmp_path)
    assert made(24, checkpoint=tmp_path).digest() == made(24).digest()
    (tmp_path / "batch_sizes.json").write_text('{"request": 3, "since": "x"}', encoding="utf-8")
    assert made(24, checkpoint=tmp_path).digest() == made(24).digest()


def test_a_batch_that_is_judged_image_by_image_stays_one() -> None:
    """Fewer pass at once: the images are those of a network that many fit together of."""
    method = ZeroQ(iterations=4, batch_size=8)
    with pytest.warns(MemoryWarning, match="8 at a time did not fit"), ShortOfMemory(4):
        short = method.generate(captured("Tiny"), SPEC, 8)
    whole = method.generate(captured("Tiny"), SPEC, 8)
    assert short.metadata == whole.metadata
    torch.testing.assert_close(short.images, whole.images, rtol=1e-3, atol=1e-3)


def test_free_memory_decides_where_no_size_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:

    def free(device: torch.device) -> int:
        del device
        return 200_000

    monkeypatch.setattr(base, "free_bytes", free)
    network = captured("Tiny")
    with pytest.warns(MemoryWarning, match="intraq images: .* instead of 16"):
        found = IntraQ(iterations=2).generate(network, SPEC, 16)
    ((_, size),) = found.metadata["batch_sizes"]
    assert size < 16
    again = IntraQ(iterations=2, batch_size=size).generate(network, SPEC, 16)
    assert again.digest() == found.digest(), "and one that was is taken as it is"
