"""A student made ready for fine-tuning, and plain again afterwards (algorithms B.9, B.2.7).

`prepare_training` puts trained quantizers (`datafree.quant.trained`) in the place of a student's
plain ones, `finish_training` puts the plain ones back with the ranges that were learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, fx, nn

from datafree.errors import ConfigError
from datafree.quant.modules import QUANTIZED, ActivationQuantizer, QuantizedLayer, Quantizer
from datafree.quant.ranges import mse_range
from datafree.quant.trained import LSQ, PACT, TRAINED, FollowedRange, Trained, never_negative

WeightTraining = Literal["lsq", "clip", "minmax", "fixed"]
ActivationTraining = Literal["lsq", "clip", "fixed", "pact"]


@dataclass(frozen=True)
class Handles:
    """What `prepare_training` put into a student, and what it took out.

    Attributes:
        steps: everything learned beside weights and biases: steps, clips and alphas.
        weights: plain quantizers of layers' weights by the path of the layer.
        activations: plain quantizers of activations by their path.
    """

    steps: list[nn.Parameter]
    weights: Mapping[str, Quantizer]
    activations: Mapping[str, ActivationQuantizer]


def prepare_training(
    student: fx.GraphModule, weights: WeightTraining, activations: ActivationTraining
) -> Handles:
    """Replace the quantizers of `student`, in place, by ones that are trained with it.

    Quantizers that are switched off stay, and those whose range is known. Whether weights and
    biases are trained is left to the caller: their `requires_grad` does not change.

    Args:
        student: calibrated.
        weights: `lsq`, learned steps with scaled gradients; `clip`, learned clips (DFQF);
            `minmax`, ranges that follow the weights (GDFQ); or `fixed`, ranges as they are, under
            weights that learn.
        activations: `lsq` or `clip` as above; `fixed`, as calibrated; or `pact`, which falls back
            to `lsq` on tensors whose zero point is not 0.

    Returns:
        What an optimizer and `finish_training` need.

    Raises:
        ValueError: a quantizer has no range.
    """
    layers = {
        name: layer for name, layer in _layers(student).items() if layer.weight_quantizer.enabled
    }
    if weights == "fixed":
        layers = {}
    plain = {name: layer.weight_quantizer for name, layer in layers.items()}
    others = {
        name: module
        for name, module in student.named_modules()
        if isinstance(module, ActivationQuantizer) and module.enabled and activations != "fixed"
        if module.covers is None
    }
    trained = {name: _trained_weight(quantizer, weights) for name, quantizer in plain.items()}
    learned = {name: _trained_activation(module, activations) for name, module in others.items()}
    for name, layer in layers.items():
        layer.add_module("weight_quantizer", trained[name])
    for name, module in learned.items():
        student.set_submodule(name, module)
    steps = [
        module.learned
        for module in (*trained.values(), *learned.values())
        if not isinstance(module, FollowedRange)
    ]
    return Handles(steps, plain, others)


def finish_training(student: fx.GraphModule, handles: Handles) -> None:
    """Put the plain quantizers back, in place, with the ranges that were learned.

    The student computes to the last bit what it did before.

    Args:
        student: as `prepare_training` left it, and trained; may be on another device since.
        handles: what `prepare_training` returned for it.
    """
    layers = _layers(student)
    for name, quantizer in handles.weights.items():
        layer = layers[name]
        _settled(layer.get_submodule("weight_quantizer"), quantizer, layer.weight)
        layer.weight_quantizer = quantizer
    for name, quantizer in handles.activations.items():
        _settled(student.get_submodule(name), quantizer, None)
        student.set_submodule(name, quantizer)


def bounded_weight_ranges(student: fx.GraphModule, ratio: float) -> None:
    """Set the weights' ranges, in place, to where DFQF starts learning (B.2.7).

    ``A = max(A_mse, ratio max|w|)``: the range of least squared error, each end at `ratio` of the
    extreme or beyond. Layers of 8 bits keep theirs.

    Args:
        student: with plain quantizers.
        ratio: 0 to 1; 0.3 in the paper (Li et al., ACML 2020), 0.5 in its code.

    Raises:
        ConfigError: `ratio` is outside.
    """
    if not 0 <= ratio <= 1:
        raise ConfigError(f"the ratio to the extremes must be 0 to 1, got {ratio}")
    for layer in _layers(student).values():
        quantizer, weight = layer.weight_quantizer, layer.weight.detach()
        if quantizer.grid.bits >= 8:
            continue
        low, high = mse_range(weight, quantizer.grid, quantizer.axis, power=2.0)
        lowest, highest = mse_range(weight, quantizer.grid, quantizer.axis, candidates=1)
        quantizer.set_range(
            torch.minimum(low, ratio * lowest), torch.maximum(high, ratio * highest)
        )


def _layers(student: nn.Module) -> dict[str, QuantizedLayer]:
    return {n: module for n, module in student.named_modules() if isinstance(module, QUANTIZED)}


def _trained_weight(quantizer: Quantizer, kind: WeightTraining) -> Trained:
    if kind == "minmax":
        return FollowedRange(quantizer)
    if kind == "clip":
        return LSQ(quantizer, learn="clip", scaled=False)
    return LSQ(quantizer)  # nobody asks for one that is fixed


def _trained_activation(quantizer: ActivationQuantizer, kind: ActivationTraining) -> Trained:
    if kind == "pact" and quantizer.has_range and never_negative(quantizer):
        return PACT(quantizer)
    if kind == "clip":
        return LSQ(quantizer, learn="clip", scaled=False, activation=True)
    return LSQ(quantizer, activation=True)


def _settled(module: nn.Module, quantizer: Quantizer, weight: Tensor | None) -> None:
    assert isinstance(module, TRAINED)  # noqa: S101 - prepare_training put it there
    module.settle(quantizer, weight)
