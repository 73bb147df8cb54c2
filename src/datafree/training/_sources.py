"""Where the images of a training come from: a generator that dreams, or an album of given ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from datafree.errors import DataError
from datafree.generators import Generator, generate, load_generator
from datafree.graph.normalisation import as_taken
from datafree.graph.taps import tap_outputs
from datafree.tensors import random_numbers
from datafree.training._task import Task
from datafree.training.base import Trainer

Labels = Tensor | None


@dataclass(frozen=True)
class Drawn:
    """Images of one batch.

    Attributes:
        images: (B, C, H, W) as the teacher takes them.
        labels: (B,) their classes, (B, K) shares of classes, or None.
        blocks: outputs of the generator's blocks, where somebody looks at them.
    """

    images: Tensor
    labels: Labels
    blocks: list[Tensor]


class Source(Protocol):
    """Who hands images out."""

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Networks that change while images are drawn, by name."""
        ...

    def draw(self, count: int, random: torch.Generator) -> Drawn:
        """A batch to learn from, with the graph that leads to the generator if there is one."""
        ...

    def kept(self, count: int, random: torch.Generator) -> Tensor:
        """(N, C, H, W) images to set ranges or to judge on, on the CPU."""
        ...


@dataclass(frozen=True)
class Dreamer:
    """A generator.

    Attributes:
        generator: in train mode.
        ask: draws latent vectors and labels: `Trainer.ask`.
        as_taken: what the generator makes, as the teacher takes it: `datafree.graph.normalisation`.
        sees_blocks: whether the outputs of the generator's blocks are kept.
    """

    generator: Generator
    ask: Callable[[Generator, int, torch.Generator], tuple[Tensor, Labels]]
    as_taken: Callable[[Tensor], Tensor]
    sees_blocks: bool = False

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The generator: its batch norms gather statistics even where its weights stay."""
        return {"generator": self.generator}

    def draw(self, count: int, random: torch.Generator) -> Drawn:
        """New images."""
        blocks: list[Tensor] = []
        watched = self.generator.blocks if self.sees_blocks else {}
        latents, labels = self.ask(self.generator, count, random)
        with tap_outputs(watched, lambda _, output: blocks.append(output.float())):
            images = self.as_taken(self.generator(latents, labels).float())
        return Drawn(images, labels, blocks)

    def kept(self, count: int, random: torch.Generator) -> Tensor:
        """New images."""
        return self.as_taken(generate(self.generator, count, random)[0])


@dataclass(frozen=True)
class Album:
    """A fixed set of images.

    Attributes:
        images: (N, C, H, W), on the CPU.
        targets: (N,) their classes, or None.
        seen: what a step sees of images: `Trainer.seen`.
        device: to learn on.
    """

    images: Tensor
    targets: Labels
    seen: Callable[[Tensor, torch.Generator], Tensor]
    device: torch.device

    @property
    def modules(self) -> dict[str, nn.Module]:
        """None."""
        return {}

    def draw(self, count: int, random: torch.Generator) -> Drawn:
        """`count` of the images, none twice before all were taken, as a step sees them."""
        total = len(self.images)
        rounds = [torch.randperm(total, generator=random) for _ in range(-(-count // total))]
        chosen = torch.cat(rounds)[:count]
        images = self.seen(self.images[chosen], random)
        labels = None if self.targets is None else self.targets[chosen].to(self.device)
        return Drawn(images.to(self.device, memory_format=torch.channels_last), labels, [])

    def kept(self, count: int, random: torch.Generator) -> Tensor:
        """The first `count` of them, or all, as they are."""
        del random
        return self.images[:count]


def source_of(trainer: Trainer, task: Task, given: Generator | None) -> Source:
    """The images of a training: those of the task, or a generator's."""
    if trainer.from_images:
        assert task.images is not None  # noqa: S101 - `_check` refuses a task without
        # What has no neighbours is neither cropped nor mirrored.
        seen = trainer.seen if not task.spec.inputs else _whole
        return Album(task.images.cpu(), task.targets, seen, task.device)
    fresh = given or Generator(
        trainer.generator_config(task.spec), random_numbers(task.seed, "weights")
    )
    return Dreamer(
        fresh.to(task.device).train(), trainer.ask, as_taken(task.teacher, task.spec),
        trainer.sees_blocks,
    )  # fmt: skip


def _whole(images: Tensor, random: torch.Generator) -> Tensor:
    del random
    return images


def given_generator(trainer: Trainer, task: Task) -> Generator:
    """The generator of ``task.generator``, which must fit.

    Raises:
        DataError: it makes other images, or takes no classes where the method asks for some.
    """
    assert task.generator is not None  # noqa: S101 - asked by the caller
    generator, _ = load_generator(task.generator)
    made, wanted = generator.config, trainer.generator_config(task.spec)
    same = made.shape == wanted.shape and (
        made.condition == "none" or made.classes == wanted.classes
    )
    if not same or (wanted.condition != "none" and made.condition == "none"):
        raise DataError(
            f"{task.generator} makes images of {made.shape} and {made.classes} classes with"
            f" condition {made.condition}, and {trainer.name} needs {wanted.shape} and"
            f" {wanted.classes} with {wanted.condition}: warm one up by {trainer.name}"
        )
    return generator
