"""What every image synthesis method shares: batches, seeds, progress, resuming."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from datafree.config import Hyperparameters, InputSpec, Scheme
from datafree.errors import DataError, ModelError
from datafree.files import make_folder
from datafree.graph.attention import find_attention
from datafree.graph.inputs import inputs_of
from datafree.graph.overflow import source_of_overflow
from datafree.graph.taps import batch_norms
from datafree.graph.untrained import require_statistics
from datafree.images import SyntheticSet
from datafree.progress import Progress, Step, silent
from datafree.progress.deadline import NEVER, Deadline
from datafree.registry import built_in, load, method_name
from datafree.tensors import device_of, state_digest


@dataclass(frozen=True)
class Batch:
    """One batch to make.

    Attributes:
        size: images in it, B.
        start: images of the set made before it.
        generator: source of all its random numbers, on the CPU.
        step: to be called with the iterations done.
        deadline: when its images should be done, such as they are.
    """

    size: int
    start: int
    generator: torch.Generator
    step: Step
    deadline: Deadline = NEVER

    def iterations(self, count: int) -> Iterator[int]:
        """0, 1 … below `count`, fewer where the deadline comes before; 0 in any case."""
        for done in range(count):
            if done and self.deadline.over:
                return
            yield done


class Synthesizer(Hyperparameters):
    """Base of all methods: a frozen set of hyper-parameters with one entry point, `generate`.

    A method implements `make_batch`, and says how many iterations a batch takes.
    """

    citation: ClassVar[str] = ""
    """Where the method comes from: authors, title, venue, year."""
    paper_options: ClassVar[Mapping[str, Any]] = {}
    """Hyper-parameters that make the steps those of the paper, where the defaults do not."""
    needs_batch_norm: ClassVar[bool] = False
    needs_attention: ClassVar[bool] = False
    needs_image: ClassVar[bool] = False
    """Whether it knows of images alone: what is smooth, black, white, or cut out."""
    needs_file: ClassVar[bool] = False
    """Whether the network alone is not enough."""
    chooses: ClassVar[bool] = False
    """Whether images are chosen among given ones, so that sets of two seeds share some."""

    def generate(  # noqa: PLR0913 - all but three have defaults
        self,
        teacher: nn.Module,
        spec: InputSpec,
        count: int,
        *,
        seed: int = 0,
        progress: Progress = silent,
        checkpoint: Path | None = None,
        deadline: Deadline = NEVER,
    ) -> SyntheticSet:
        """Synthesise `count` images for `teacher`.

        Args:
            teacher: canonical graph with its batch norms unfolded, in eval mode; not changed.
            spec: its input.
            count: number of images, at least 1.
            seed: the same seed gives the same images on the same machine.
            progress: shown while it runs, in iterations.
            checkpoint: folder that keeps finished batches, so that an interrupted call with the
                same arguments goes on where it stopped; `Stored.clear` empties it, once the set
                itself is kept elsewhere.
            deadline: shared out among the batches, each of which ends early, such as it is then.

        Returns:
            A set on the CPU; its metadata hold method, hyper-parameters and seed.

        Raises:
            ModelError: the method needs batch norms and the network has none.
            DataError: the images diverged, or all are the same.
        """
        self.check(teacher)
        request = self.request(teacher, spec, count, seed, stored=checkpoint is not None)
        state = self.prepare(teacher, spec, torch.Generator().manual_seed(seed))
        parts: list[SyntheticSet] = []
        total = -(-count // self.batch_images(teacher, count)) * self.batch_iterations
        with progress(f"{self.name} images", total) as step:
            for batch in in_time(self.batches(teacher, count, seed, step), deadline):
                drawn = batch.generator.initial_seed()
                stored = Stored(checkpoint, batch.start, {**request, "batch_seed": drawn})
                part = stored.load()
                if part is None:
                    images, targets = self.make_batch(teacher, spec, batch, state)
                    self.check_images(images, teacher, spec, batch)
                    part = SyntheticSet(images.cpu(), spec, targets, stored.metadata)
                    stored.save(part)
                else:
                    step(self.batch_iterations)
                parts.append(part)
                state = self.after_batch(state, part)
        return self.joined(parts, spec, seed, count)

    def joined(
        self, parts: list[SyntheticSet], spec: InputSpec, seed: int, count: int
    ) -> SyntheticSet:
        """The set that `parts` make, with all that was chosen.

        Raises:
            DataError: all images are the same, or of a single colour each.
        """
        made = join(parts, spec, {**self.describe(), "seed": seed, "count": count})
        if all_alike(made.images):
            kind = "of a single colour" if flat(made.images) else "the same"
            raise DataError(
                f"synthesis by {self.name}: all {count} images are {kind}, which tells no range:"
                " choose another method, or another generator"
            )
        return made

    def check_images(
        self, images: Tensor, teacher: nn.Module, spec: InputSpec, batch: Batch
    ) -> None:
        """Refuse a batch that diverged, by the method's name and what overflows, if that is known.

        Raises:
            DataError: numbers that are not finite.
        """
        if bool(torch.isfinite(images).all()):
            return
        source = None
        if isinstance(teacher, fx.GraphModule):
            noise = torch.randn(min(batch.size, 2), *spec.shape, generator=batch.generator)
            source = source_of_overflow(teacher, noise.to(device_of(teacher)))
        cause = (
            f"{source} leaves float32 on plain noise: check its weights, or choose the method noise"
            if source is not None
            else "lower its learning rate, or choose another method"
        )
        raise DataError(
            f"synthesis by {self.name}: images {batch.start + 1} to {batch.start + batch.size}"
            f" diverged to NaN or infinity: {cause}"
        )

    def batches(self, teacher: nn.Module, count: int, seed: int, step: Step) -> list[Batch]:
        """The batches that make a set, each with random numbers of its own."""
        size = self.batch_images(teacher, count)
        starts = range(0, count, size)
        seeder = torch.Generator().manual_seed(seed)
        seeds = torch.randint(2**62, (len(starts),), generator=seeder).tolist()
        return [
            Batch(min(size, count - start), start, torch.Generator().manual_seed(number), step)
            for start, number in zip(starts, seeds, strict=True)
        ]

    def request(
        self, teacher: nn.Module, spec: InputSpec, count: int, seed: int, *, stored: bool
    ) -> dict[str, Any]:
        """All that the images depend on, as JSON values; the teacher's weights if they are stored.

        Only images stored under an equal request are taken up again.
        """
        return {
            **self.describe(),
            "seed": seed,
            "count": count,
            "spec": spec.model_dump(mode="json"),
            "teacher": state_digest(teacher.state_dict()) if stored else "",
        }

    @property
    def name(self) -> str:
        """The method's name: the stem of its file."""
        return method_name(type(self))

    @property
    def batch_iterations(self) -> int:
        """Progress units one batch takes."""
        return 1

    def passes(self, count: int) -> float:
        """Images sent through the network and back to make `count`, about, to foretell the time."""
        return self.batch_iterations * count

    def batch_images(self, teacher: nn.Module, count: int) -> int:
        """Images made together when `count` are asked for."""
        del teacher
        return count

    def for_scheme(self, scheme: Scheme) -> Synthesizer:
        """The method as it is used in a run that quantizes to `scheme`."""
        del scheme
        return self

    def check(self, teacher: nn.Module) -> None:
        """Refuse a network the method cannot work on.

        Raises:
            ModelError: no batch norm, or no attention, where the method needs it, or no batch norm
                that saw data; names methods that work.
        """
        if self.fits(teacher):
            if self.needs_batch_norm:
                require_statistics(teacher, self.name, "noise")
            return
        other = isinstance(teacher, fx.GraphModule) and inputs_of(teacher)
        missing = (
            "makes images, and this network takes something else"
            if self.needs_image and other
            else "matches batch-norm statistics, and this network has no such layer"
            if self.needs_batch_norm and not batch_norms(teacher)
            else "looks at attention, and this network computes none"
        )
        others = fitting_methods(teacher)
        named = " or ".join(filter(None, (", ".join(others[:-1]), others[-1])))
        raise ModelError(f"{self.name} {missing}; use the method {named}, which fits it")

    @classmethod
    def fits(cls, teacher: nn.Module) -> bool:
        """Whether `teacher` has what the method looks at."""
        if cls.needs_batch_norm and not batch_norms(teacher):
            return False
        if cls.needs_image and isinstance(teacher, fx.GraphModule) and inputs_of(teacher):
            return False
        return not cls.needs_attention or (
            isinstance(teacher, fx.GraphModule) and bool(find_attention(teacher))
        )

    def describe(self) -> dict[str, Any]:
        """Method name and all hyper-parameters, as JSON values."""
        return {"method": self.name, **self.model_dump(mode="json")}

    def prepare(self, teacher: nn.Module, spec: InputSpec, generator: torch.Generator) -> Any:
        """Whatever all batches share (DSG: the margins); computed once."""
        del teacher, spec, generator

    def after_batch(self, state: Any, part: SyntheticSet) -> Any:
        """What the batches that follow share, once `part` is finished, or was read from disk.

        Args:
            state: what `prepare`, or the last call, returned.
            part: the finished batch.
        """
        del part
        return state

    @abstractmethod
    def make_batch(
        self, teacher: nn.Module, spec: InputSpec, batch: Batch, state: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Images (B, C, H, W) in normalised space and their targets (B,), if any.

        Args:
            teacher: as in `generate`.
            spec: as in `generate`.
            batch: size, place in the set, random numbers, progress.
            state: what `prepare` returned, or `after_batch` of the batch before.
        """


def in_time(batches: Sequence[Batch], deadline: Deadline) -> Iterator[Batch]:
    """The batches one by one, each with its share of the time that is left when it begins."""
    for place, batch in enumerate(batches):
        yield replace(batch, deadline=deadline.share(1 / (len(batches) - place)))


def flat(images: Tensor) -> bool:
    """Whether each of the images (N, C, …), of more than one pixel, is of a single colour."""
    colours = images.flatten(2)
    return colours.shape[2] > 1 and bool((colours == colours[..., :1]).all())


def all_alike(images: Tensor) -> bool:
    """Whether images (N, C, …) tell nothing: all of a single colour each, or all the same."""
    return flat(images) or (len(images) > 1 and bool((images == images[:1]).all()))


def fitting_methods(teacher: nn.Module) -> list[str]:
    """Names of the methods that come with this package and work on `teacher`; noise is the last."""
    package, found = "datafree.synthesis", list[str]()
    for name in built_in(package):
        cls = load(package, name, Synthesizer)
        if not cls.needs_file and cls.fits(teacher):
            found.append(name)
    return sorted(found, key=lambda name: name == "noise")


def even_batches(count: int, most: int) -> int:
    """Images per batch when `count` are made in the fewest batches of at most `most`.

    The batches are about equal, which batch statistics need: 130 images, at most 128 together, are
    two batches of 65.
    """
    return -(-count // -(-count // most))


@dataclass(frozen=True)
class Stored:
    """A finished batch on disk, valid only for exactly the same request."""

    folder: Path | None
    start: int
    metadata: dict[str, Any]

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
            for path in folder.glob("batch_*.safetensors"):
                path.unlink()
            if not any(folder.iterdir()):
                folder.rmdir()


def join(parts: list[SyntheticSet], spec: InputSpec, metadata: dict[str, Any]) -> SyntheticSet:
    """One set of the images and targets of `parts`, in order."""
    targets = [part.targets for part in parts if part.targets is not None]
    return SyntheticSet(
        images=torch.cat([part.images for part in parts]),
        spec=spec,
        targets=torch.cat(targets) if targets else None,
        metadata=metadata,
    )
