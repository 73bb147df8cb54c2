"""Learning the steps and biases of a whole student together, by what the float network answers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from datafree.graph.activations import Rows, stored
from datafree.graph.outputs import heads_of
from datafree.losses import distillation
from datafree.progress import Step
from datafree.progress.deadline import NEVER, Deadline
from datafree.quant.learned import LearnedStep, ScaledCodes
from datafree.quant.modules import QUANTIZED, ActivationQuantizer, QuantizedLayer, Quantizer
from datafree.reconstruction._schedule import falling, fractions
from datafree.tensors import device_of, kept_memory
from datafree.tensors.memory import Portion

_CHUNK = 64
_LIMIT = 2**62  # bytes: images are in memory already


@dataclass(frozen=True)
class Settings:
    """How long and how fast.

    Attributes:
        iterations: steps.
        rate: Adam's, as a share of every step size, and of the mean size of a layer's biases; falls
            to 0 along a cosine.
        batch: images per step.
    """

    iterations: int
    rate: float
    batch: int


def learn_jointly(  # noqa: PLR0913 - two networks, images, how, and who looks on
    folded: fx.GraphModule,
    student: fx.GraphModule,
    images: Tensor,
    settings: Settings,
    generator: torch.Generator,
    step: Step,
    deadline: Deadline = NEVER,
) -> tuple[float, float]:
    """Learn all step sizes and biases of `student`, which is changed in place.

    ``min_(s, s_a, b) KL(softmax(teacher(x)) || softmax(student(x)))``, of all heads as
    `datafree.losses.distillation` has it, under the integer codes that the weights have.

    Args:
        folded: the float network.
        student: its weights lie on their grids; on the same device.
        images: (N, C, H, W), normalised.
        settings: how long and how fast.
        generator: draws the images of every step; on the student's device.
        step: called with the steps done.
        deadline: when it ends early; rates then follow the time.

    Returns:
        The divergence on all images, before and after.

    Raises:
        FloatingPointError: it is no number any more; the student is as it was.
    """
    rows = stored(images, device_of(student), _LIMIT)
    wanted = _answers(folded, rows)
    before = _divergence(student, rows, wanted)
    learned = _Learned.install(student)
    try:
        with kept_memory():
            _optimize(student, learned, rows, wanted, settings, generator, step, deadline)
        after = _divergence(student, rows, wanted)
        if not math.isfinite(after):
            raise FloatingPointError
    except BaseException:
        learned.undo()
        raise
    learned.remove()
    return before, after


@dataclass(frozen=True)
class _Learned:
    """The learnable stand-ins in a student, and what they stand in for."""

    student: fx.GraphModule
    layers: dict[str, QuantizedLayer]
    weights: dict[str, Quantizer]
    codes: dict[str, ScaledCodes]
    quantizers: dict[str, ActivationQuantizer]
    steps: dict[str, LearnedStep]
    biases: dict[str, Tensor]

    @classmethod
    def install(cls, student: fx.GraphModule) -> _Learned:
        modules = dict(student.named_modules())
        layers: dict[str, QuantizedLayer] = {
            name: one for name, one in modules.items() if isinstance(one, QUANTIZED)
        }
        weights = {name: layer.weight_quantizer for name, layer in layers.items()}
        codes = {name: ScaledCodes(one.weight, weights[name]) for name, one in layers.items()}
        biases = {name: one.bias for name, one in layers.items() if one.bias is not None}
        quantizers: dict[str, ActivationQuantizer] = {
            name: one for name, one in modules.items()
            if isinstance(one, ActivationQuantizer) and one.enabled
            and one.covers is None and one.fixed is None
        }  # fmt: skip
        steps = {name: LearnedStep(one, 0.0, torch.Generator()) for name, one in quantizers.items()}
        for name, layer in layers.items():
            layer.add_module("weight_quantizer", codes[name])
            if name in biases:
                layer.bias = nn.Parameter(biases[name].detach().clone())
        for name, one in steps.items():
            student.set_submodule(name, one)
        return cls(student, layers, weights, codes, quantizers, steps, biases)

    def groups(self, rate: float) -> list[tuple[list[Tensor], float]]:
        """Parameters with their rates: one for steps of weights, own ones for all else."""
        factors: list[Tensor] = [one.factor for one in self.codes.values()]
        found: list[tuple[list[Tensor], float]] = [(factors, rate)]
        for one in self.steps.values():
            found.append(([one.scale], rate * float(one.scale.detach())))
        for name in self.biases:
            bias = self.layers[name].bias
            assert bias is not None  # noqa: S101 - only those were taken
            unit = max(float(bias.detach().abs().mean()), float(self.weights[name].scale.mean()))
            found.append(([bias], rate * unit))
        return [(parameters, own) for parameters, own in found if parameters]

    def undo(self) -> None:
        """Put everything back as it was."""
        for name, layer in self.layers.items():
            layer.weight_quantizer = self.weights[name]
            if name in self.biases:
                layer.bias = nn.Parameter(self.biases[name], requires_grad=False)
        for name, one in self.quantizers.items():
            self.student.set_submodule(name, one)

    def remove(self) -> None:
        """Put ordinary modules back, with what was learned."""
        for name, layer in self.layers.items():
            layer.weight_quantizer = self.weights[name]
            layer.weight_quantizer.scale = self.codes[name].step().detach().clone()
            layer.weight = nn.Parameter(self.codes[name].hard(), requires_grad=False)
            if layer.bias is not None:
                layer.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
        for name, one in self.quantizers.items():
            one.scale = self.steps[name].step().detach().clone()
            self.student.set_submodule(name, one)


def _optimize(  # noqa: PLR0913 - all of `learn_jointly`
    student: fx.GraphModule,
    learned: _Learned,
    rows: Rows,
    wanted: Tensor,
    settings: Settings,
    generator: torch.Generator,
    step: Step,
    deadline: Deadline,
) -> None:
    groups = learned.groups(settings.rate)
    parameters = [parameter for group, _ in groups for parameter in group]
    given = [{"params": group, "lr": rate} for group, rate in groups]
    optimizer = torch.optim.Adam(given, fused=True)
    heads = heads_of(student)
    for fraction in fractions(settings.iterations, deadline):
        for group, (_, rate) in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] = rate * falling(fraction)
        index = torch.randperm(rows.count, generator=generator, device=generator.device)
        index = index[: settings.batch].cpu()
        answers = student(rows[index])
        loss = distillation(answers, wanted[index.to(wanted.device)], 1.0, heads=heads)
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True
        ):
            parameter.grad = gradient
        optimizer.step()
        step(1)
    if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
        raise FloatingPointError


@torch.no_grad()
def _answers(network: nn.Module, rows: Rows) -> Tensor:
    """What `network` returns for all images."""

    def work(size: int) -> Tensor:
        return torch.cat([network(values) for _, values in rows.chunks(size)])

    return Portion("answers of the whole network", min(_CHUNK, rows.count)).fit(work)


def _divergence(student: fx.GraphModule, rows: Rows, wanted: Tensor) -> float:
    return float(distillation(_answers(student, rows), wanted, 1.0, heads=heads_of(student)))
