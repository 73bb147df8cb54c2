"""One step of generator and student."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from datafree.graph.taps import BatchNorm
from datafree.losses import Heads
from datafree.tensors import random_numbers
from datafree.training._sources import Source
from datafree.training._task import Dream
from datafree.training._team import Team
from datafree.training.base import Trainer


@dataclass
class Game:
    """Who shows images and who looks on.

    Attributes:
        teacher: frozen.
        source: of the images.
        memory: what `Trainer.remember` returned.
        taps: filled by the teacher's forward pass.
        team: the processes that play.
        heads: what the teacher returns, if it is more than logits.
    """

    teacher: nn.Module
    source: Source
    memory: Any
    taps: list[tuple[BatchNorm, Tensor]]
    team: Team
    heads: Heads = ()

    def dream(self, count: int, start: int, random: torch.Generator) -> Dream:
        """A new batch, with the graph that leads to the generator if there is one."""
        drawn = self.source.draw(count, random)
        logits = self.teacher(drawn.images).float()
        # Statistics are sums over many values, whatever precision the layers compute in.
        features = [(layer, tapped.float()) for layer, tapped in self.taps]
        return Dream(
            drawn.images, drawn.labels, logits, features, drawn.blocks, start, random, self.heads
        )


@dataclass(frozen=True)
class Move:
    """One step of all that learns in a phase.

    Attributes:
        trainer: the method.
        game: teacher and source of images.
        student: who learns beside the generator, or None.
        optimizers: of the `generator`, if it learns, and of the student.
        seed: of the random numbers, with the name of the phase.
        tuning: the student is quantized.
    """

    trainer: Trainer
    game: Game
    student: nn.Module | None
    optimizers: Mapping[str, Optimizer]
    seed: tuple[int, str]
    tuning: bool
    _rates: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Remember the rates that schedules are factors on."""
        for name, optimizer in () if self._rates else self.optimizers.items():
            self._rates[name] = [group["lr"] for group in optimizer.param_groups]

    def __call__(self, step: int, fraction: float) -> Mapping[str, Tensor]:
        """Step `step` at `fraction` of the phase; the losses by name, detached."""
        self._set_rates(fraction)
        team, trainer = self.game.team, self.trainer
        start = step * trainer.batch_size + team.rank * self._count
        random = random_numbers(*self.seed, step, team.rank)
        losses: dict[str, Tensor] = {}
        dream = None
        if "generator" in self.optimizers:
            with team.computing():
                dream = self.game.dream(self._count, start, random)
                losses = trainer.generator_terms(dream, self.student, self.game.memory)
            if losses:  # every weight 0: images of a generator that stays as it was drawn
                _descend(losses, [self.optimizers["generator"]], team)
        if self.student is not None:
            own = self._teach(self.student, None if trainer.fresh else dream, start, random)
            losses |= {f"student {name}": value for name, value in own.items()}
        return {name: value.detach() for name, value in losses.items()}

    @property
    def _count(self) -> int:
        """Images of this process in a batch."""
        return self.trainer.batch_size // self.game.team.size

    def _teach(
        self, student: nn.Module, dream: Dream | None, start: int, random: torch.Generator
    ) -> Mapping[str, Tensor]:
        """All steps of the student, the first one on `dream` if there is one; the last losses."""
        team, trainer = self.game.team, self.trainer
        optimizers = [o for name, o in self.optimizers.items() if name != "generator"]
        losses: Mapping[str, Tensor] = {}
        for _ in range(trainer.student_steps):
            with team.computing():
                if dream is None:
                    with torch.no_grad():
                        dream = self.game.dream(self._count, start, random)
                dream = dream.detached()
                losses = trainer.student_losses(student, dream, self.game.memory)
            _descend(losses, optimizers, team)
            dream = None
        return losses

    def _set_rates(self, fraction: float) -> None:
        for name, optimizer in self.optimizers.items():
            factor = self.trainer.rate(name, fraction, tuning=self.tuning)
            for group, rate in zip(optimizer.param_groups, self._rates[name], strict=True):
                group["lr"] = rate * factor


def _descend(terms: Mapping[str, Tensor], optimizers: Iterable[Optimizer], team: Team) -> None:
    """One step of all `optimizers` down the sum of `terms`; nothing else receives gradients."""
    optimizers = list(optimizers)
    parameters = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    total = torch.stack([term.float() for term in terms.values()]).sum()
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, team.mean(gradients), strict=True):
        parameter.grad = gradient
    for optimizer in optimizers:
        optimizer.step()
