"""What every reconstruction shares: its settings, seeds, progress, resuming."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, fx, nn

from datafree.config import Hyperparameters
from datafree.errors import ConfigError, DataError
from datafree.graph.activations import share
from datafree.graph.blocks import find_blocks, layer_blocks
from datafree.graph.taps import last_linear
from datafree.progress import Progress, Step, silent
from datafree.progress.deadline import NEVER, Deadline
from datafree.progress.meter import Meter
from datafree.reconstruction._joint import Settings, learn_jointly
from datafree.reconstruction._learn import Outcome, Task, learn
from datafree.reconstruction._schedule import Penalty, Stage
from datafree.reconstruction._walk import walk
from datafree.registry import method_name
from datafree.tensors import device_of, load_tensors, save_tensors, state_digest
from datafree.tensors.memory import Portion

__all__ = ["Outcome", "Reconstructor", "Stage"]

TOGETHER = "all layers together"
"""What the last outcome is of, where there are `joint_iterations`: divergence of the answers."""
# Student and float network where a block begins and where it ends, and where a layer inside it
# begins; the layer's targets and their importance.
_TENSORS_HELD = 8
# From so many steps on the papers' rates suffice; fewer than 100 were not tried.
_REMEDY = (
    "let every layer be learned by itself (--reconstruction-option unit=layer), leave the"
    " reconstruction out, or use a machine that has more"
)
_ENOUGH_STEPS, _LARGEST_FACTOR = 5_000, 50.0


class Reconstructor(Hyperparameters):
    """Base of all reconstructions: learns to round the weights of a calibrated student."""

    citation: ClassVar[str] = ""
    """Where the method comes from: authors, title, venue, year."""

    iterations: int = Field(default=20_000, ge=1)
    """Steps per block (per layer where `unit` is `layer`)."""
    batch_size: int = Field(default=32, ge=1)
    """Images per step, drawn uniformly without repetition."""
    unit: Literal["block", "layer"] = "block"
    """What is learned together: `block`, all layers between two cuts; `layer`, every layer by
    itself."""
    max_layers: int = Field(default=12, ge=1)
    """Layers a block may have to be learned as one; larger blocks are learned layer by layer."""
    rounding_lr: float = Field(default=1e-3, gt=0)
    """Adam's rate for the rounding variables."""
    lr_factor: float | None = Field(default=None, gt=0)
    """Factor on `rounding_lr`, and up to 10 of it on the rates of step sizes. None is 1, the
    papers' rates, for at least 5,000 steps, and 5,000 divided by the steps for fewer, at most 50:
    a rounding variable begins within 2.4 of 0 and moves by about its rate per step, so that 500
    steps of 0.001 would leave most choices as they were."""
    rounding_weight: float = Field(default=0.01, ge=0)
    """Weight of the rounding penalty, which drives every weight to go either down or up."""
    warmup: float = Field(default=0.2, ge=0, le=1)
    """Share of the steps before the rounding penalty sets in."""
    beta_start: float = Field(default=20.0, gt=0)
    """Exponent of the rounding penalty when it sets in; changes linearly to `beta_end`."""
    beta_end: float = Field(default=2.0, gt=0)
    """Exponent of the rounding penalty at the last step."""
    prediction_weight: float = Field(default=0.0, ge=0)
    """Weight of the divergence of what the network answers, where the student's block is followed
    by the rest of the float network, from what the float network answers (PD-Quant, which has 10);
    0 leaves it out. A step then passes the rest of the network too. Layers that are learned one by
    one inside a block go without it."""
    prediction_temperature: float = Field(default=4.0, gt=0)
    """Temperature of these answers."""
    feature_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the loss that is the squared distance of what the last linear layer reads, where the
    student's block is followed by the rest of the float network, from what it reads there; the rest
    is the block's own error, and before learning both are as large. 0 leaves it out. A step then
    passes the rest of the network too. Layers that are learned one by one inside a block go
    without it."""
    joint_iterations: int = Field(default=0, ge=0)
    """Steps after the last block, in which the step sizes and biases of all layers learn together
    what the network answers (`datafree.reconstruction._joint`); 0 leaves them out."""
    joint_lr: float = Field(default=1e-3, gt=0)
    """Adam's rate in these steps, as a share of every step size, and of the mean size of a layer's
    biases; falls to 0 along a cosine."""
    memory_gb: float = Field(default=4.0, gt=0)
    """Memory for the values at the border of a block, in GB; what goes beyond is kept on disk."""

    @property
    def name(self) -> str:
        """The method's name: the stem of its file."""
        return method_name(type(self))

    @abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """The passes through the network, in order."""

    def reconstruct(  # noqa: PLR0913 - all but four have defaults
        self,
        folded: fx.GraphModule,
        student: fx.GraphModule,
        images: Tensor,
        *,
        unfolded: fx.GraphModule | None = None,
        seed: int = 0,
        progress: Progress = silent,
        checkpoint: Path | None = None,
        deadline: Deadline = NEVER,
    ) -> list[Outcome]:
        """Learn the rounding of every weight of `student`, which is changed in place.

        Afterwards the weights themselves lie on their grids, so the student is an ordinary one.

        Args:
            folded: the float graph the student was made from.
            student: calibrated, on the same device.
            images: (N, C, H, W), normalised.
            unfolded: the graph `folded` was folded from, for methods that count in its units.
            seed: the same seed gives the same student on the same machine.
            progress: shown while it runs, in steps.
            checkpoint: file that keeps the student after every block, so that an interrupted call
                with the same arguments goes on there; removed at the end.
            deadline: shared out among the blocks by their steps; each ends early and keeps what it
                has learned, and those it leaves no time for are rounded to the nearest.

        Raises:
            ConfigError: no images, or a network that `check` refuses.
            DataError: the loss of a block is no number any more; the message names its layers.
            ModelError: the network has no layer to reconstruct.
        """
        if not len(images):
            raise ConfigError(f"{self.name} needs images to learn on, and there are none")
        self.check(folded)
        blocks = [
            (block, [block] if self._whole(len(block.layers)) else layer_blocks(folded, block))
            for block in find_blocks(folded)
        ]
        units = self.step_units(unfolded)
        stages = tuple(self._settled(stage) for stage in self.stages())
        steps = [stage.iterations for stage in stages for _, units in blocks for _ in units]
        start = {**student.state_dict(), "images": images}
        saved = _Saved(checkpoint, {**self.describe(), "seed": seed, "start": state_digest(start)})
        outcomes = saved.load(student)
        limit = share(self.memory_gb, _TENSORS_HELD)
        tasks = walk(folded, student, images, blocks, stages, len(outcomes), limit)
        total = sum(steps) + self.joint_iterations
        with progress(f"{self.name} reconstruction", total) as step, closing(tasks):
            step(sum(steps[: len(outcomes)]))
            portion = self._portion(len(images), outcomes)

            def learned(task: Task, deadline: Deadline) -> Outcome:
                meter, number = Meter(step, task.stage.iterations), seed + len(outcomes)

                def work(size: int) -> Outcome:
                    meter.expect(task.stage.iterations)
                    random = torch.Generator(task.device).manual_seed(number)
                    return learn(task, student, size, self._penalty(), random, meter, deadline)

                return portion.fit(work)

            for found in tasks:
                task = replace(found, units=units)
                left = sum(steps[len(outcomes) :]) + self.joint_iterations
                limit = deadline.share(task.stage.iterations / left)
                try:
                    outcomes.append(learned(task, limit))
                except FloatingPointError:
                    raise self._diverged(task.unit.name) from None
                saved.save(student, outcomes)
            if self.joint_iterations:
                outcomes.append(self._jointly(folded, student, images, seed, step, deadline))
        saved.clear()
        return outcomes

    def _jointly(
        self, folded: fx.GraphModule, student: fx.GraphModule, images: Tensor, seed: int,
        step: Step, deadline: Deadline,
    ) -> Outcome:  # fmt: skip
        """All steps and biases together, as an outcome of its own."""
        meter = Meter(step, self.joint_iterations)

        def work(size: int) -> tuple[float, float]:
            meter.expect(self.joint_iterations)
            random = torch.Generator(device_of(student)).manual_seed(seed)
            how = Settings(self.joint_iterations, self.joint_lr, size)
            return learn_jointly(folded, student, images, how, random, meter, deadline)

        portion = self._portion(len(images), [])
        try:
            before, after = portion.fit(work)
        except FloatingPointError:
            raise DataError(
                f"{self.name} reconstruction: the answers of the whole network are no numbers any"
                " more: lower joint_lr (--reconstruction-option joint_lr=1e-4), or leave"
                " joint_iterations out"
            ) from None
        return Outcome(TOGETHER, before, after, rounded=0, undecided=0, batch=portion.size)

    def _portion(self, images: int, outcomes: list[Outcome]) -> Portion:
        """Images per step: as many as before, where units were learned already."""
        size = outcomes[-1].batch if outcomes else 0
        return Portion(f"{self.name} reconstruction", size or self.batch(images), remedy=_REMEDY)

    def _diverged(self, unit: str) -> DataError:
        return DataError(
            f"{self.name} reconstruction: the loss of {unit} is not a number any more: lower"
            " lr_factor (--reconstruction-option lr_factor=1), or leave the reconstruction out"
        )

    def check(self, graph: fx.GraphModule) -> None:
        """Refuse a network that has not what the options ask for.

        Args:
            graph: of the network.

        Raises:
            ConfigError: `feature_share`, and no linear layer.
        """
        if self.feature_share and last_linear(graph) is None:
            raise ConfigError(
                "feature_share is of what the last linear layer reads, and this network has none:"
                " leave it out, or let what the network answers count (prediction_weight)"
            )

    def factor(self, iterations: int) -> float:
        """On the rounding rate of a stage of so many steps; see `lr_factor`."""
        if self.lr_factor is not None:
            return self.lr_factor
        return min(max(_ENOUGH_STEPS / iterations, 1.0), _LARGEST_FACTOR)

    def step_units(self, unfolded: fx.GraphModule | None) -> Mapping[str, Tensor]:
        """(O,) by layer, what learned step sizes of its weight are counted in; 1 of others.

        Args:
            unfolded: as for `reconstruct`.
        """
        del unfolded
        return {}

    def batch(self, images: int) -> int:
        """Images per step when there are `images`."""
        return min(self.batch_size, images)

    def passes(self, images: int, blocks: int = 1) -> float:
        """Images sent through the network and back, about, to foretell the time.

        A step of each unit sends one batch through that unit: through the whole network in all; and
        where it counts what comes behind, through half of the network for each block but one.
        Quantizers take about as long as what they quantize.

        Args:
            images: that there are.
            blocks: of the network.
        """
        steps = sum(stage.iterations for stage in self.stages())
        behind = (self.prediction_weight > 0) + (self.feature_share > 0)
        units = 2 + behind * (blocks - 1) / 2
        return (units * steps + 2 * self.joint_iterations) * self.batch(images)

    def describe(self) -> dict[str, object]:
        """Method name and all hyper-parameters, as JSON values."""
        return {"method": self.name, **self.model_dump(mode="json")}

    def _settled(self, stage: Stage) -> Stage:
        """With rates for its steps, and what all stages share."""
        faster = stage.faster(self.factor(stage.iterations))
        prediction, temperature = self.prediction_weight, self.prediction_temperature
        features = self.feature_share
        return replace(faster, prediction=prediction, temperature=temperature, features=features)

    def _whole(self, layers: int) -> bool:
        return self.unit == "block" and layers <= self.max_layers

    def _penalty(self) -> Penalty:
        return Penalty(self.rounding_weight, self.warmup, self.beta_start, self.beta_end)


class _Saved:
    """The student after the last finished block, valid only for exactly the same request."""

    def __init__(self, path: Path | None, request: dict[str, object]) -> None:
        self.path = path
        self.request = request

    def load(self, student: nn.Module) -> list[Outcome]:
        """What was learned before; puts it into `student`."""
        found = None if self.path is None else load_tensors(self.path, self.request)
        if found is None:
            return []
        student.load_state_dict(found[0])
        return [Outcome(**values) for values in json.loads(found[1]["outcomes"])]

    def save(self, student: nn.Module, outcomes: list[Outcome]) -> None:
        """Keep `student` as it is now."""
        if self.path is not None:
            described = json.dumps([asdict(outcome) for outcome in outcomes])
            save_tensors(self.path, student.state_dict(), self.request, outcomes=described)

    def clear(self) -> None:
        """The reconstruction is complete."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
