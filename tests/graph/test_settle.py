"""Numbers of a settled student are those its target has."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from datafree.calibrators.base import calibrate
from datafree.calibrators.minmax import MinMax
from datafree.config import Scheme
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.graph.settle import input_quantizers, settle
from datafree.quant.modules import QUANTIZED, ActivationQuantizer
from networks import SPEC, captured, images


def ready(name: str = "Tiny", **scheme: object) -> fx.GraphModule:
    fields = {"target": "onnxruntime", **scheme}
    student = insert_quantizers(
        fold_batch_norms(captured(name)), Scheme.model_validate(fields), SPEC
    )
    calibrate(student, [images(16)], MinMax())
    return student


def test_biases_are_whole_multiples_of_the_scales() -> None:
    student = settle(ready())
    quantizers = input_quantizers(student)
    assert list(quantizers) == ["conv1", "conv2", "linear"]
    for path, before in quantizers.items():
        layer = student.get_submodule(path)
        assert isinstance(layer, QUANTIZED) and before is not None and layer.bias is not None
        step = before.scale.double() * layer.weight_quantizer.scale.double().flatten()
        codes = layer.bias.detach().double() / step
        assert float((codes - codes.round()).abs().max()) < 1e-3 * float(codes.abs().max())


def test_biases_of_papers_stay_as_they_are() -> None:
    student = ready(target="paper")
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    settle(student)
    after = dict(student.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_bias_that_would_not_fit_its_integer_makes_the_scale_larger() -> None:
    student = ready()
    layer = student.get_submodule("conv1")
    assert isinstance(layer, QUANTIZED) and layer.bias is not None
    with torch.no_grad():
        layer.weight[0] = 0  # a dead channel: its scale is the smallest there is
        layer.weight_quantizer.fit(layer.weight)
        layer.bias[0] = 0.5
    settle(student)
    before = input_quantizers(student)["conv1"]
    assert before is not None
    step = float(before.scale) * float(layer.weight_quantizer.scale.flatten()[0])
    assert 0.5 / step <= 2**30 * (1 + 1e-6)
    assert float(layer.bias[0]) == pytest.approx(0.5, rel=1e-6)


def test_zero_points_are_even_and_powers_of_two_are_kept() -> None:
    student = settle(ready())
    found = [m for m in student.modules() if isinstance(m, ActivationQuantizer)]
    assert found and all(float(m.zero_point) % 2 == 0 for m in found)
    learned = ready(target="vitis")
    for module in learned.modules():
        if isinstance(module, ActivationQuantizer):
            module.scale = module.scale * 1.1  # as learning would leave it
    for module in settle(learned).modules():
        if isinstance(module, ActivationQuantizer):
            assert float(torch.log2(module.scale)) == round(float(torch.log2(module.scale)))


def test_a_scale_does_not_reach_beyond_where_values_end() -> None:
    student = ready("Grouped")
    behind = [
        student.get_submodule(str(node.target))
        for node in student.graph.nodes
        if node.op == "call_module"
        and node.name.endswith("_quantizer")
        and node.args[0].op == "call_module"
        and isinstance(student.get_submodule(str(node.args[0].target)), nn.ReLU6)
    ]
    for module in student.modules():
        if isinstance(module, ActivationQuantizer):
            module.scale = torch.tensor(1.0)
    settle(student)
    assert behind
    for module in behind:
        assert isinstance(module, ActivationQuantizer)
        assert 0.999 * 6 < 255 * float(module.scale) <= 6
