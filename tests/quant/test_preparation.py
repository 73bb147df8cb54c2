from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from datafree.calibrators.base import calibrate
from datafree.calibrators.minmax import MinMax
from datafree.config import InputSpec, Scheme
from datafree.errors import ConfigError
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.quant.modules import QUANTIZED, ActivationQuantizer, QuantizedLayer, Quantizer
from datafree.quant.preparation import (
    ActivationTraining,
    WeightTraining,
    bounded_weight_ranges,
    finish_training,
    prepare_training,
)
from datafree.quant.ranges import mse_range
from datafree.quant.trained import LSQ, FollowedRange
from datafree.zoo import ZOO, digits_resnet8, load_digits_test
from networks import SPEC, build, captured, images

WEIGHT_KINDS: tuple[WeightTraining, ...] = ("lsq", "clip", "minmax")
ACTIVATION_KINDS: tuple[ActivationTraining, ...] = ("lsq", "clip", "fixed", "pact")


def student(name: str = "Tiny", **scheme: Any) -> fx.GraphModule:
    options: dict[str, Any] = {"bits": "W3A3", "policy": "first_last_8", **scheme}
    made = insert_quantizers(fold_batch_norms(captured(name)), Scheme(**options))
    calibrate(made, [images(16)], MinMax())
    return made


def layers_of(graph: nn.Module) -> list[QuantizedLayer]:
    return [module for module in graph.modules() if isinstance(module, QUANTIZED)]


def tune(graph: fx.GraphModule, steps: list[nn.Parameter]) -> None:
    """A few steps in which every weight and every step changes."""
    weights = [layer.weight for layer in layers_of(graph)]
    for weight in weights:
        weight.requires_grad_()
    optimizer = torch.optim.Adam([*weights, *steps], lr=1e-3)
    for seed in range(3):
        loss = graph(images(16, seed + 10) * 2).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for weight in weights:
        weight.requires_grad_(False)


@pytest.mark.parametrize("weights", WEIGHT_KINDS)
@pytest.mark.parametrize("activations", ACTIVATION_KINDS)
def test_a_finished_student_computes_what_the_trained_one_did(
    weights: WeightTraining, activations: ActivationTraining
) -> None:
    graph = student()
    plain = dict(graph.named_modules())
    handles = prepare_training(graph, weights, activations)
    before = [step.detach().clone() for step in handles.steps]
    tune(graph, handles.steps)
    for old, new in zip(before, handles.steps, strict=True):
        assert not torch.equal(old, new)
    with torch.no_grad():
        expected = graph(images(8))
    finish_training(graph, handles)
    assert torch.equal(graph(images(8)), expected)
    found = dict(graph.named_modules())
    assert found.keys() == plain.keys()
    assert all(found[name] is plain[name] for name in plain if name)
    assert not [name for name, _ in graph.named_parameters() if "quantizer" in name]


def test_what_is_swapped() -> None:
    """Tiny: three layers, and three inputs, of which only the image has two signs."""
    graph = student()
    handles = prepare_training(graph, "clip", "pact")
    weights = [cast("nn.Module", layer.weight_quantizer) for layer in layers_of(graph)]
    assert all(isinstance(module, LSQ) and not module.scaled for module in weights)
    kinds = [type(graph.get_submodule(name)) for name in handles.activations]
    assert sorted(kind.__name__ for kind in kinds) == ["LSQ", "PACT", "PACT"]
    assert len(handles.steps) == 6
    fallback = next(m for n in handles.activations if isinstance(m := graph.get_submodule(n), LSQ))
    assert fallback.scaled and fallback.activation and fallback.learn == "step"


def test_clips_of_activations_have_no_scaled_gradient() -> None:
    graph = student()
    handles = prepare_training(graph, "lsq", "clip")
    for name in handles.activations:
        module = graph.get_submodule(name)
        assert isinstance(module, LSQ) and module.learn == "clip" and not module.scaled


def test_minmax_with_fixed_activations_learns_no_step() -> None:
    graph = student()
    assert not prepare_training(graph, "minmax", "fixed").steps
    assert all(isinstance(layer.weight_quantizer, FollowedRange) for layer in layers_of(graph))
    assert [m for m in graph.modules() if isinstance(m, ActivationQuantizer)]


@pytest.mark.parametrize("weights", WEIGHT_KINDS)
def test_a_prepared_student_starts_as_it_was(weights: WeightTraining) -> None:
    graph = student("InPlaceResidual")
    expected = graph(images(8))
    prepare_training(graph, weights, "lsq")
    torch.testing.assert_close(graph(images(8)), expected, rtol=1e-4, atol=1e-5)


def test_layers_that_share_a_weight() -> None:
    graph = student("Tied")
    handles = prepare_training(graph, "lsq", "lsq")
    tune(graph, handles.steps)
    expected = graph(images(8))
    finish_training(graph, handles)
    assert torch.equal(graph(images(8)), expected)


def test_quantizers_that_are_off_stay() -> None:
    graph = student()
    first = layers_of(graph)[0].weight_quantizer
    first.enabled = False
    handles = prepare_training(graph, "lsq", "lsq")
    assert layers_of(graph)[0].weight_quantizer is first
    assert len(handles.weights) == 2
    finish_training(graph, handles)
    assert not first.enabled


@pytest.mark.parametrize("activations", ["lsq", "clip", "pact"])
def test_what_is_known_is_not_learned(activations: ActivationTraining) -> None:
    graph = insert_quantizers(fold_batch_norms(captured("Tiny")), Scheme(bits="W8A3"), SPEC)
    calibrate(graph, [images(16)], MinMax())
    first = next(m for m in graph.modules() if isinstance(m, ActivationQuantizer))
    scale, zero_point = first.scale.clone(), first.zero_point.clone()
    handles = prepare_training(graph, "lsq", activations)
    assert len(handles.activations) == 2
    tune(graph, handles.steps)
    finish_training(graph, handles)
    assert first in list(graph.modules())
    assert (first.scale, first.zero_point) == (scale, zero_point)


def test_a_student_without_ranges_is_left_as_it_was() -> None:
    made = insert_quantizers(fold_batch_norms(captured("Tiny")), Scheme(bits="W3A3"))
    before = dict(made.named_modules())
    with pytest.raises(ValueError, match="calibrate first"):
        prepare_training(made, "lsq", "pact")
    assert dict(made.named_modules()) == before


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.9])
def test_bounded_weight_ranges(ratio: float, symmetric: bool) -> None:
    graph = student(bits="W2A8", symmetric_weights=symmetric, weight_granularity="tensor")
    for layer in layers_of(graph):
        layer.weight_quantizer.set_range(torch.tensor(-7.0), torch.tensor(7.0))
    old = copy.deepcopy(graph)
    bounded_weight_ranges(graph, ratio)
    first, second, last = layers_of(graph)
    for layer, before in ((first, layers_of(old)[0]), (last, layers_of(old)[2])):
        assert torch.equal(layer.weight_quantizer.scale, before.weight_quantizer.scale)
    weight, grid = second.weight.detach(), second.weight_quantizer.grid
    low, high = mse_range(weight, grid, power=2.0)
    ends = torch.stack([low, weight.min() * ratio, high, weight.max() * ratio])
    scale, zero_point = grid.parameters(ends[:2].min(), ends[2:].max())
    assert torch.equal(second.weight_quantizer.scale, scale)
    assert torch.equal(second.weight_quantizer.zero_point, zero_point)


def test_bounded_weight_ranges_bind_and_are_checked() -> None:
    """One outlier of 100: least error would clip far below half of it."""
    model = build("Tiny")
    with torch.no_grad():
        cast("nn.Conv2d", model.get_submodule("conv2")).weight[0, 0, 0, 0] = 100.0
    folded = fold_batch_norms(capture(model, SPEC))
    made = insert_quantizers(folded, Scheme(bits="W4A32", weight_range="mse"))
    bounded_weight_ranges(made, 1.0)
    quantizer, weight = layers_of(made)[1].weight_quantizer, layers_of(made)[1].weight.detach()
    exact = Quantizer(quantizer.grid, axis=0)
    exact.fit(weight)
    assert torch.equal(quantizer.scale, exact.scale)
    for ratio in (-0.1, 1.1):
        with pytest.raises(ConfigError, match="0 to 1"):
            bounded_weight_ranges(made, ratio)


@pytest.mark.integration
def test_training_brings_digits_back() -> None:
    """Least-error ranges at W2A3 lose points; a few steps of distillation return them."""
    model = digits_resnet8()
    pixels, labels = (torch.from_numpy(part) for part in load_digits_test())
    entry = ZOO["digits_resnet8"]
    x = (pixels.permute(0, 3, 1, 2).float() / 255 - entry.mean[0]) / entry.std[0]
    spec = InputSpec(shape=entry.input_shape, mean=entry.mean, std=entry.std, classes=10)
    folded = fold_batch_norms(capture(model, spec))
    scheme = Scheme(bits="W2A3", policy="first_last_8", weight_granularity="tensor")
    graph = insert_quantizers(folded, scheme)
    bounded_weight_ranges(graph, 0.3)
    calibrate(graph, [x], MinMax())

    def correct() -> float:
        with torch.no_grad():
            return (graph(x).argmax(1) == labels).float().mean().item()

    untrained = correct()
    with torch.no_grad():
        targets = folded(x).softmax(1)
    handles = prepare_training(graph, "clip", "clip")
    weights = [layer.weight.requires_grad_() for layer in layers_of(graph)]
    optimizer = torch.optim.Adam([{"params": weights}, {"params": handles.steps}], lr=1e-3)
    for _ in range(15):
        loss = F.cross_entropy(graph(x), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trained = correct()
    finish_training(graph, handles)
    assert correct() == trained
    assert trained > max(untrained + 0.1, 0.9)


@pytest.mark.parametrize("name", ["Tiny", "InPlaceResidual"])
def test_fixed_steps_stay_under_weights_that_learn(name: str) -> None:
    """DFQF's Table 3: the step as training begins, the weight on its grid wherever it moves."""
    graph = student(name)
    before = {n: layer.weight_quantizer.scale.clone() for n, layer in named(graph).items()}
    weights = {n: layer.weight.detach().clone() for n, layer in named(graph).items()}
    handles = prepare_training(graph, "fixed", "fixed")
    assert not handles.steps and not handles.weights
    tune(graph, handles.steps)
    expected = graph(images(8))
    finish_training(graph, handles)
    assert torch.equal(graph(images(8)), expected)
    for path, layer in named(graph).items():
        assert torch.equal(layer.weight_quantizer.scale, before[path])
        assert not torch.equal(layer.weight, weights[path])
    assert prepare_training(student(name), "fixed", "clip").steps, "activations may learn theirs"


def named(graph: nn.Module) -> dict[str, QuantizedLayer]:
    return {n: module for n, module in graph.named_modules() if isinstance(module, QUANTIZED)}
