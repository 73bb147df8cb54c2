"""Batches made one after the other, and smaller ones where memory runs out.

What is finished stays. Image n is that of a run which was given the batch size it was made with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from datafree.errors import DataError
from datafree.files import make_folder, write_text
from datafree.images import SyntheticSet
from datafree.progress import Step
from datafree.progress.deadline import NEVER, Deadline
from datafree.progress.meter import Meter
from datafree.tensors.memory import Portion, out_of_memory

_SIZES = "batch_sizes.json"
REMEDY = (
    "free memory or use a machine that has more, or let --method noise make the images, which"
    " does not go back through the network"
)


def unseen(done: int) -> None:
    """Nobody looks on."""


@dataclass(frozen=True)
class Batch:
    """One batch to make.

    Attributes:
        size: images in it, B.
        start: images of the set made before it.
        generator: source of all its random numbers, on the CPU.
        step: to be called with the iterations done.
        deadline: when its images should be done, such as they are.
        together: images that pass the network at once, at most, where the method judges them one
            by one; None leaves that to the method.
    """

    size: int
    start: int
    generator: torch.Generator
    step: Step = unseen
    deadline: Deadline = NEVER
    together: int | None = None

    def iterations(self, count: int) -> Iterator[int]:
        """0, 1 … below `count`, fewer where the deadline comes before; 0 in any case."""
        for done in range(count):
            if done and self.deadline.over:
                return
            yield done

    def at_once(self, most: int) -> int:
        """Images that pass the network at once, where `most` would."""
        return most if self.together is None else min(most, self.together)


@dataclass(frozen=True)
class Stored:
    """A finished batch on disk, valid only for exactly the same request."""

    folder: Path | None
    start: int
    metadata: dict[str, Any]

    @classmethod
    def of(cls, batch: Batch, folder: Path | None, request: Mapping[str, Any]) -> Stored:
        """`batch` of a set, by all that it depends on."""
        drawn = {"batch_seed": batch.generator.initial_seed(), "batch_images": batch.size}
        return cls(folder, batch.start, {**request, **drawn})

    @property
    def path(self) -> Path | None:
        """Its file; None where nothing is kept."""
        return self.folder / f"batch_{self.start:06d}.safetensors" if self.folder else None

    def load(self) -> SyntheticSet | None:
        """What an earlier call with the same request left; None if there is nothing."""
        if self.path is None or not self.path.exists():
            return None
        try:
            stored = SyntheticSet.load(self.path)
        except DataError:
            return None
        wanted = json.dumps(self.metadata, sort_keys=True)
        return stored if json.dumps(dict(stored.metadata), sort_keys=True) == wanted else None

    def save(self, part: SyntheticSet) -> None:
        """Keep `part` until the set is complete."""
        if self.path is not None:
            make_folder(self.path.parent)
            part.save(self.path)

    @staticmethod
    def clear(folder: Path | None) -> None:
        """The set is kept elsewhere: its batches need not be."""
        if folder is not None and folder.is_dir():
            for path in (*folder.glob("batch_*.safetensors"), folder / _SIZES):
                path.unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()


@dataclass
class Sizes:
    """The batch sizes of a set, on disk too: what goes on uses those it was begun with.

    Attributes:
        folder: where unfinished sets are; None keeps nothing.
        request: all that the images depend on.
        asked: size that was asked for.
        since: from which image on batches have which size, in order.
    """

    folder: Path | None
    request: Mapping[str, Any]
    asked: int
    since: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Take up the sizes of an earlier call with the same request."""
        path = None if self.folder is None else self.folder / _SIZES
        try:
            found = None if path is None else json.loads(path.read_text(encoding="utf-8"))
            kept = [(0, self.asked)]
            if isinstance(found, dict) and found.get("request") == dict(self.request):
                kept = found["since"]
            self.since = [(int(start), max(1, int(size))) for start, size in kept]
        except (OSError, ValueError, TypeError, KeyError):
            self.since = [(0, self.asked)]

    def at(self, image: int) -> int:
        """Size of the batch that `image` is in."""
        return [size for start, size in self.since if start <= image][-1]

    def change(self, start: int, size: int) -> None:
        """Batches have `size` from image `start` on."""
        self.since = [(at, before) for at, before in self.since if at < start] + [(start, size)]
        if self.folder is not None:
            make_folder(self.folder)
            told = json.dumps({"request": dict(self.request), "since": self.since})
            write_text(self.folder / _SIZES, told)

    @property
    def changed(self) -> bool:
        """Whether any batch has another size than was asked for."""
        return self.since != [(0, self.asked)]

    @property
    def told(self) -> dict[str, Any]:
        """``batch_sizes`` for the metadata of a set, where they are not what was asked for."""
        return {"batch_sizes": [list(one) for one in self.since]} if self.changed else {}


@dataclass
class Making:
    """The batches of one set, in order.

    Attributes:
        what: is made, for people: ``genie images``.
        batches: those of a set that is made in batches of a given size, each at its place.
        make: makes one, or reads what an earlier call made of it.
        steps: progress units one batch takes.
        sizes: images in a batch.
        together: images that pass the network at once, of a method that judges them one by one.
    """

    what: str
    batches: Callable[[int], Sequence[Batch]]
    make: Callable[[Batch], SyntheticSet]
    steps: int
    sizes: Sizes
    together: Portion | None = None

    def parts(self, meter: Meter, deadline: Deadline = NEVER) -> list[SyntheticSet]:
        """All images.

        Where memory runs out in a batch it is begun again: with half as many images passed at once
        where that is left to the method, else in batches of half the size. Those lie where a run of
        that size has them; what they make of images that are there already is left out.

        Raises:
            NoRoomError: not even one image fits.
        """
        found: list[SyntheticSet] = []
        made = 0
        while left := self._left(made):
            meter.expect(self.steps * len(left))
            told = None
            try:
                for batch in in_time(left, deadline):
                    together = None if self.together is None else self.together.size
                    part = self.make(replace(batch, step=meter, together=together))
                    found.append(part.since(made - batch.start))
                    made = batch.start + batch.size
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                told = str(error)
            # Only here is the traceback gone, and with it the tensors it held.
            if told is not None:
                self._lessen(made, told)
        return found

    def _left(self, made: int) -> list[Batch]:
        """The batches of all images but the first `made`, in their sizes."""
        starts = [start for start, _ in self.sizes.since[1:]]
        found: list[Batch] = []
        for (_, size), end in zip(self.sizes.since, [*starts, None], strict=True):
            found += [
                batch for batch in self.batches(size)
                if batch.start + batch.size > made and (end is None or batch.start < end)
            ]  # fmt: skip
            made = max(made, end or 0)
        return found

    def _lessen(self, made: int, told: str) -> None:
        """Take less at a time from image `made` on."""
        if self.together is not None and self.together.size > 1:
            self.together.halve(told)
            return
        portion = Portion(self.what, self.sizes.at(made), remedy=REMEDY)
        portion.halve(told)
        self.sizes.change(made, portion.size)


def in_time(batches: Sequence[Batch], deadline: Deadline) -> Iterator[Batch]:
    """The batches one by one, each with its share of the time that is left when it begins."""
    for place, batch in enumerate(batches):
        yield replace(batch, deadline=deadline.share(1 / (len(batches) - place)))
