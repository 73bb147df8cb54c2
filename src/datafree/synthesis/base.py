"""What every image synthesis method shares: batches, seeds, progress, resuming."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from datafree.config import Hyperparameters, InputSpec, Scheme
from datafree.errors import DataError, ModelError
from datafree.graph.attention import find_attention
from datafree.graph.footprint import footprint
from datafree.graph.inputs import inputs_of
from datafree.graph.overflow import source_of_overflow
from datafree.graph.taps import batch_norms
from datafree.graph.untrained import require_statistics
from datafree.images import SyntheticSet, blank
from datafree.progress import Progress, Step, silent
from datafree.progress.deadline import NEVER, Deadline
from datafree.progress.meter import Meter
from datafree.registry import built_in, load, method_name
from datafree.synthesis._making import REMEDY, Batch, Making, Sizes, Stored, unseen
from datafree.tensors import device_of, state_digest
from datafree.tensors.memory import Portion, free_bytes

__all__ = [
    "Batch", "Making", "Sizes", "Stored", "Synthesizer", "all_alike", "even_batches",
    "fitting_methods", "flat", "join",
]  # fmt: skip
_BACK = 2.0
"""Memory of a pass there and back over that of what layers return."""


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

        def make(batch: Batch) -> SyntheticSet:
            nonlocal state
            stored = Stored.of(batch, checkpoint, request)
            part = stored.load()
            if part is not None:
                batch.step(self.batch_iterations)
            else:
                images, targets = self.make_batch(teacher, spec, batch, state)
                self.check_images(images, teacher, spec, batch)
                part = SyntheticSet(images.cpu(), spec, targets, stored.metadata)
                stored.save(part)
            state = self.after_batch(state, part)
            return part

        what, size = f"{self.name} images", self.batch_images(teacher, count)
        sizes = Sizes(checkpoint, request, size)
        together = self._affordable(teacher, spec, what, sizes)
        making = Making(
            what, lambda size: self.batches(teacher, count, seed, size=size), make,
            self.batch_iterations, sizes, together,
        )  # fmt: skip
        total = -(-count // size) * self.batch_iterations
        with progress(what, total) as step:
            parts = making.parts(Meter(step, total), deadline)
        return self.joined(parts, spec, seed, count, sizes.told)

    def _affordable(
        self, teacher: nn.Module, spec: InputSpec, what: str, sizes: Sizes
    ) -> Portion | None:
        """Images that pass together, or `sizes` where batches pass whole, for the free memory.

        A batch size that was asked for stays.
        """
        device = device_of(teacher)
        most = self.at_once(spec, sizes.asked, device)
        together = None if most is None else Portion(what, most)
        free = free_bytes(device)
        if not isinstance(teacher, fx.GraphModule) or free is None or not self.passes(1):
            return together
        one = Portion(what, 1, remedy=REMEDY)
        each = _BACK * one.fit(lambda _: footprint(teacher, blank(spec, device)).kept)
        if together is not None:
            return together.afford(each, free)
        if "batch_size" not in self.model_fields_set and not sizes.changed:
            portion = Portion(what, sizes.asked).afford(each, free)
            if portion.size < sizes.asked:
                sizes.change(0, portion.size)
        return None

    def joined(
        self, parts: list[SyntheticSet], spec: InputSpec, seed: int, count: int,
        told: Mapping[str, Any] | None = None,
    ) -> SyntheticSet:  # fmt: skip
        """The set that `parts` make, with all that was chosen, and what else is `told`.

        Raises:
            DataError: all images are the same, or of a single colour each.
        """
        metadata = {**self.describe(), "seed": seed, "count": count, **(told or {})}
        made = join(parts, spec, metadata)
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

    def batches(
        self, teacher: nn.Module, count: int, seed: int, step: Step = unseen,
        size: int | None = None,
    ) -> list[Batch]:  # fmt: skip
        """The batches that make a set, each with random numbers of its own.

        Those of `size`, where it is given, are those of a method with that `batch_size`.
        """
        if size is None:
            size = self.batch_images(teacher, count)
        elif "batch_size" in type(self).model_fields:
            size = self.model_copy(update={"batch_size": size}).batch_images(teacher, count)
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

    def at_once(self, spec: InputSpec, size: int, device: torch.device) -> int | None:
        """Images of a batch of `size` that pass the network together.

        None where a batch has to pass as a whole, since its images are judged together.
        """
        del spec, size, device

    def for_scheme(self, scheme: Scheme) -> Synthesizer:
        """The method as it is used in a run that quantizes to `scheme`."""
        del scheme
        return self

    def for_trial(self) -> Synthesizer:
        """The method as its first steps are timed: less of what comes before them, if that is dear.

        Its steps cost the same; its images are thrown away.
        """
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


def join(parts: list[SyntheticSet], spec: InputSpec, metadata: dict[str, Any]) -> SyntheticSet:
    """One set of the images and targets of `parts`, in order."""
    targets = [part.targets for part in parts if part.targets is not None]
    return SyntheticSet(
        images=torch.cat([part.images for part in parts]),
        spec=spec,
        targets=torch.cat(targets) if targets else None,
        metadata=metadata,
    )
