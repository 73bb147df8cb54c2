"""Folded weights that learn as before folding."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from datafree.config import Scheme
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.graph.slopes import squared_slopes
from datafree.graph.taps import BatchNorm
from datafree.quant.modules import QUANTIZED
from datafree.quant.preparation import prepare_training
from datafree.quant.trained import LSQ
from datafree.tensors import fast_copy
from datafree.training._rates import learn_as_before_folding
from networks import captured, images

WEIGHTS_ONLY = Scheme(bits="W4A32", policy="all", weight_granularity="channel")
NORMS = {"conv1": "bn1", "conv2": "bn2"}


def descend(student: fx.GraphModule) -> None:
    """One step of SGD on weights and clips, as fine-tuning takes gradients."""
    layers = [m for m in student.modules() if isinstance(m, QUANTIZED)]
    clips: list[Tensor] = []
    for layer in layers:
        quantizer = layer.get_submodule("weight_quantizer")
        assert isinstance(quantizer, LSQ)
        clips.append(quantizer.learned)
    parameters = [*(layer.weight for layer in layers), *clips]
    loss = student(images(8)).square().mean()
    decayed = {"params": parameters[: len(layers)], "weight_decay": 0.01}
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    torch.optim.SGD([decayed, {"params": clips}], lr=0.05, momentum=0.9).step()


def test_a_step_moves_folded_weights_and_clips_as_a_step_before_folding_would() -> None:
    network = captured("Tiny")
    students: dict[str, fx.GraphModule] = {}
    for name, base in (("raw", network), ("folded", fold_batch_norms(network))):
        students[name] = fast_copy(insert_quantizers(base, WEIGHTS_ONLY))
        prepare_training(students[name], "clip", "fixed")
        students[name].requires_grad_()
    learn_as_before_folding(students["folded"], network)
    before = {n: p.detach().clone() for n, p in students["folded"].named_parameters()}
    for student in students.values():
        descend(student)
    for path, norm_path in NORMS.items():
        norm = network.get_submodule(norm_path)
        assert isinstance(norm, BatchNorm) and norm.running_var is not None
        a = (norm.weight / (norm.running_var + norm.eps).sqrt()).view(-1, 1, 1, 1)
        assert not torch.allclose(a.abs(), torch.ones(()), rtol=0.05)
        for name, factor in ((f"{path}.weight", a), (f"{path}.weight_quantizer.clip", a.abs())):
            raw = students["raw"].get_parameter(name)
            folded = students["folded"].get_parameter(name)
            assert not torch.allclose(folded, before[name], rtol=1e-4)
            torch.testing.assert_close(folded, raw * factor, rtol=1e-4, atol=1e-6)


def test_layers_without_norm_learn_as_they_did() -> None:
    network = captured("Tiny")
    found: list[Tensor] = []
    for scaled in (False, True):
        student = fold_batch_norms(network).requires_grad_()
        if scaled:
            learn_as_before_folding(student, network)
        weight = student.get_parameter("linear.weight")
        found += torch.autograd.grad(student(images(8)).square().mean(), [weight])
    assert torch.equal(*found)


def test_merged_branches_learn_by_the_factor_of_each_tap() -> None:
    network = captured("Branched")
    found: list[Tensor] = []
    for scaled in (False, True):
        student = fold_batch_norms(network).requires_grad_()
        if scaled:
            learn_as_before_folding(student, network)
        weight = student.get_parameter("wide.weight")
        found += torch.autograd.grad(student(images(8)).square().mean(), [weight])
    factors = squared_slopes(network)["wide"].float()
    assert factors.shape == (8, 8, 3, 3)
    torch.testing.assert_close(found[1], found[0] * factors)
