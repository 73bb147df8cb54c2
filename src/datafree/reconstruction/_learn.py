"""Learning the rounding of one block (algorithms B.5 - B.8, B.13)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import repeat

import torch
from torch import Tensor, fx, nn

from datafree.graph.activations import Rows
from datafree.graph.blocks import Block
from datafree.progress import Step
from datafree.progress.deadline import NEVER, Deadline
from datafree.quant.flexible import DividedWeight
from datafree.quant.learned import LearnedStep, SoftRounding, mix
from datafree.quant.modules import QUANTIZED, ActivationQuantizer, QuantizedLayer, Quantizer
from datafree.quant.straight import RoundedWeight, StraightWeight
from datafree.reconstruction._behind import Behind
from datafree.reconstruction._error import output_error
from datafree.reconstruction._schedule import Penalty, Stage, falling, fractions
from datafree.tensors import kept_memory
from datafree.tensors.memory import Portion

_Weight = SoftRounding | RoundedWeight
_MEASURED = 128  # samples the error before and after is taken on
_SMALLEST = 1e-8  # error of features that a weight is divided by


@dataclass(frozen=True)
class Task:
    """One unit to learn.

    Attributes:
        unit: its place in the graph.
        stage: how.
        layers: paths of the layers to round: those no earlier unit of the stage has rounded.
        quantizers: names of the activation quantizers to learn, likewise.
        part: the unit of the student; shares its layers.
        inputs: what the student computes where the unit begins.
        exact: what the float network computes there.
        targets: what the float network computes where it ends.
        importance: weights of the error, of the shape of `targets`, or None.
        answers: of the network behind the unit, if they count.
        features: that its last linear layer reads, likewise.
        units: (O,) what step sizes of weights are counted in, by layer; 1 of others.
    """

    unit: Block
    stage: Stage
    layers: tuple[str, ...]
    quantizers: tuple[str, ...]
    part: fx.GraphModule
    inputs: Rows
    exact: Rows
    targets: Rows
    importance: Rows | None = None
    answers: Behind | None = None
    features: Behind | None = None
    units: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    @property
    def device(self) -> torch.device:
        """Where the student is."""
        return self.inputs.device


@dataclass(frozen=True)
class Outcome:
    """What learning did to one unit.

    Attributes:
        block: its layers.
        before: error of its output as it came, all quantizers of the stage at work.
        after: the same with what was learned, every weight rounded.
        rounded: weights that learned where to round.
        undecided: of these, how many were still between down and up when learning ended. Rounding
            those is not what was learned.
        batch: images per step; 0 is not known.
    """

    block: str
    before: float
    after: float
    rounded: int
    undecided: int
    batch: int = 0


def learn(  # noqa: PLR0913 - what one unit needs
    task: Task,
    student: fx.GraphModule,
    batch: int,
    penalty: Penalty,
    generator: torch.Generator,
    step: Step,
    deadline: Deadline = NEVER,
) -> Outcome:
    """Learn one unit; afterwards the layers of `student` in it are ordinary ones, on their grids.

    Whatever ends it early leaves the unit as it was.

    Args:
        task: the unit.
        student: whose layers and quantizers receive the result.
        batch: images per step.
        penalty: of the rounding variables.
        generator: source of all random choices, on the student's device.
        step: called with the steps done.
        deadline: when it ends early. Rates and penalty then follow the time where it runs ahead of
            the steps, so that roundings are decided all the same.

    Raises:
        FloatingPointError: what was learned is not finite, or the error is not.
    """
    before = _error(task)
    task = _balanced(task, before)
    learned = _Learned.install(task, student, generator)
    weights = list(learned.weights.values())
    rounding = [one for one in weights if isinstance(one, SoftRounding)]
    try:
        if groups := learned.groups(task.stage):
            with kept_memory():
                _optimize(task, groups, rounding, batch, penalty, generator, step, deadline)
        else:
            step(task.stage.iterations)
    except BaseException:
        learned.undo()
        raise
    learned.remove()
    after = _error(task)
    if not math.isfinite(after):
        raise FloatingPointError
    return Outcome(
        task.unit.name, before, after, batch=batch,
        rounded=sum(layer.weight.numel() for layer in learned.layers.values()),
        undecided=sum(variables.undecided() for variables in rounding),
    )  # fmt: skip


@dataclass(frozen=True)
class _Learned:
    """The learnable stand-ins in a unit, and the modules they stand in for."""

    student: fx.GraphModule
    part: fx.GraphModule
    layers: dict[str, QuantizedLayer]
    quantizers: dict[str, Quantizer]
    weights: dict[str, _Weight]
    steps: dict[str, LearnedStep]

    @classmethod
    def install(cls, task: Task, student: fx.GraphModule, generator: torch.Generator) -> _Learned:
        stage = task.stage
        layers: dict[str, QuantizedLayer] = {}
        weights: dict[str, _Weight] = {}
        steps: dict[str, LearnedStep] = {}
        for name in task.layers if stage.rounding_lr else ():
            layer = student.get_submodule(name)
            assert isinstance(layer, QUANTIZED)  # noqa: S101 - the walk names no others
            layers[name] = layer
        quantizers = {name: layer.weight_quantizer for name, layer in layers.items()}
        for name, layer in layers.items():
            weights[name] = _weight(layer, quantizers[name], stage, task.units.get(name))
            layer.add_module("weight_quantizer", weights[name])
        for name in task.quantizers if stage.activation_lr else ():
            quantizer = task.part.get_submodule(name)
            assert isinstance(quantizer, ActivationQuantizer)  # noqa: S101 - the walk found it
            if quantizer.grid.bits >= stage.steps_below or quantizer.covers is not None:
                continue
            steps[name] = LearnedStep(quantizer, stage.drop, generator)
            task.part.set_submodule(name, steps[name])
        return cls(student, task.part, layers, quantizers, weights, steps)

    def groups(self, stage: Stage) -> list[tuple[list[Tensor], float]]:
        """Parameters with their rates: rounding or weights first, then step sizes."""
        learned: list[Tensor] = [p for w in self.weights.values() for p in w.learned()]
        steps: dict[float, list[Tensor]] = {}
        rates = [*zip(self.weights.values(), repeat(stage.weight_step_lr)),
                 *zip(self.steps.values(), repeat(stage.activation_lr))]  # fmt: skip
        for one, published in rates:
            if published:
                size = float(one.scale.detach().mean())
                own = stage.step_rate(published, size, one.grid)
                steps.setdefault(own, []).append(one.scale)
        found = [(learned, stage.rounding_lr), *((scales, own) for own, scales in steps.items())]
        return [(parameters, rate) for parameters, rate in found if parameters]

    def undo(self) -> None:
        """Put the modules back as they were."""
        for name, layer in self.layers.items():
            layer.weight_quantizer = self.quantizers[name]
        for name in self.steps:
            self.part.set_submodule(name, self.student.get_submodule(name))

    def remove(self) -> None:
        """Put ordinary modules back, with what was learned."""
        for name, layer in self.layers.items():
            layer.weight_quantizer = self.quantizers[name]
            layer.weight_quantizer.scale = self.weights[name].step().detach().clone()
            layer.weight = nn.Parameter(self.weights[name].hard(), requires_grad=False)
        for name, step in self.steps.items():
            quantizer = self.student.get_submodule(name)
            assert isinstance(quantizer, ActivationQuantizer)  # noqa: S101 - names are shared
            quantizer.scale = step.step().detach().clone()
            self.part.set_submodule(name, quantizer)


def _weight(
    layer: QuantizedLayer, quantizer: Quantizer, stage: Stage, unit: Tensor | None
) -> _Weight:
    """What learns in place of the weight quantizer of `layer`, as `stage` says."""
    learns = stage.weight_step_lr > 0
    if stage.weights == "straight":
        return StraightWeight(layer.weight, quantizer, learn_step=learns)
    if stage.weights == "divided":
        return DividedWeight(layer.weight, quantizer, learn_step=learns)
    unit = _unit(unit, quantizer.scale)
    return SoftRounding(layer.weight, quantizer, learn_step=learns, unit=unit)


def _unit(rows: Tensor | None, scale: Tensor) -> Tensor | None:
    """(O,) as broadcast to steps per channel; their mean where one step serves all channels."""
    if rows is None:
        return None
    fitting = rows.view(-1, *[1] * (scale.ndim - 1)) if scale.numel() == len(rows) else rows.mean()
    return fitting.to(scale)


def _optimize(  # noqa: PLR0913 - all of `learn` and what it installed
    task: Task,
    groups: list[tuple[list[Tensor], float]],
    rounding: list[SoftRounding],
    batch: int,
    penalty: Penalty,
    generator: torch.Generator,
    step: Step,
    deadline: Deadline,
) -> None:
    stage = task.stage
    settings = [{"params": parameters, "lr": rate} for parameters, rate in groups]
    optimizer = torch.optim.Adam(settings, fused=True)
    # Rounding variables keep their rate; all else, which comes after them, anneals to 0.
    annealed = list(zip(optimizer.param_groups, groups, strict=True))[bool(rounding) :]
    parameters = [parameter for group, _ in groups for parameter in group]
    for fraction in fractions(stage.iterations, deadline):
        for group, (_, rate) in annealed:
            group["lr"] = rate * falling(fraction)
        index = torch.randperm(task.inputs.count, generator=generator, device=generator.device)
        index = index[:batch].cpu()
        loss = _loss(task, index, generator)
        beta = penalty.beta(fraction)
        if beta is not None:
            for variables in rounding:
                loss = loss + penalty.weight * variables.penalty(beta)
        gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        step(1)
    # A gradient that was no number once stays in Adam's moments.
    if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
        raise FloatingPointError


def _loss(task: Task, index: Tensor, generator: torch.Generator) -> Tensor:
    """The error of a unit's output, and of what comes behind it, on the chosen images.

    That of the answers is of the student's own inputs, none of them the float ones, in one batch
    with the others (PD-Quant).
    """
    stage, own = task.stage, task.inputs[index]
    values = mix(own, task.exact[index], stage.drop, generator) if stage.drop else own
    both = task.answers is not None and values is not own
    outputs = task.part(torch.cat((values, own)) if both else values)
    mixed, plain = outputs.chunk(2) if both else (outputs, outputs)
    weights = None if task.importance is None else task.importance[index]
    loss = output_error(mixed, task.targets[index], stage.power, weights)
    if task.features is not None:
        loss = (1 - stage.features) * loss + task.features.loss(mixed, index)
    if task.answers is not None:
        loss = loss + task.answers.loss(plain, index)
    return loss


def _balanced(task: Task, before: float) -> Task:
    """With features weighted so that they begin as large as the unit's error, in their share."""
    if task.features is None:
        return task
    features = replace(task.features, weight=1.0)
    there = _mean(task, features.loss)
    weight = task.features.weight * before / max(there, _SMALLEST)
    return replace(task, features=replace(features, weight=weight))


def _error(task: Task) -> float:
    """Of the unit's output, on the first images."""

    def error(outputs: Tensor, index: Tensor) -> Tensor:
        weights = None if task.importance is None else task.importance[index]
        return output_error(outputs, task.targets[index], task.stage.power, weights)

    return _mean(task, error)


def _mean(task: Task, error: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Of `error`, of the unit's outputs and their images, over the first images."""
    count = min(_MEASURED, task.inputs.count)

    @torch.no_grad()
    def mean(size: int) -> float:
        total = 0.0
        for index in torch.arange(count).split(size):
            found = error(task.part(task.inputs[index]), index)
            total += float(found) * (len(index) / count)
        return total

    return Portion(f"the error of {task.unit.name}", count).fit(mean)
