from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from datafree.calibrators.bn_statistics import BNStatistics
from datafree.config import ModelConfig, Scheme, build
from datafree.errors import ConfigError, ModelError
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.graph.statistics import Statistics, layer_statistics
from datafree.graph.taps import tap_outputs
from datafree.models import load_teacher
from datafree.quant.modules import ActivationQuantizer
from datafree.testing.watching import fingerprint
from datafree.zoo import load_digits_test
from networks import SPEC, captured


def prepared(name: str, scheme: Scheme) -> tuple[fx.GraphModule, fx.GraphModule, Statistics]:
    graph = captured(name)
    folded = fold_batch_norms(graph)
    return insert_quantizers(folded, scheme), folded, layer_statistics(graph)


def ends(student: fx.GraphModule, name: str) -> tuple[float, float]:
    """Lower and upper end of the range of an affine quantizer."""
    quantizer = student.get_submodule(name)
    assert isinstance(quantizer, ActivationQuantizer)
    scale, zero = quantizer.scale.item(), quantizer.zero_point.item()
    return -zero * scale, (quantizer.grid.qmax - zero) * scale


def test_ranges_by_hand() -> None:
    """Image: pixels 0 and 255. Behind ReLUs: 0 … the widest channel's beta + 6 |gamma|."""
    student, folded, statistics = prepared("Tiny", Scheme(bits="W8A8"))
    before = fingerprint(folded)
    BNStatistics().set_ranges(student, folded, statistics, SPEC)
    assert fingerprint(folded) == before
    low, high = ends(student, "x_quantizer")
    assert low == pytest.approx(-2, abs=0.02)  # (0 - 0.4) / 0.2
    assert high == pytest.approx(3, abs=0.02)
    for name, layer in (("relu1_quantizer", "conv1"), ("mean_quantizer", "conv2")):
        normal = statistics[layer]
        assert ends(student, name)[0] == 0
        expected = float((normal.mean + 6 * normal.std).max())
        assert ends(student, name)[1] == pytest.approx(expected, rel=1e-5)


def test_deviations_are_an_option() -> None:
    student, folded, statistics = prepared("Tiny", Scheme())
    BNStatistics(deviations=2).set_ranges(student, folded, statistics, SPEC)
    normal = statistics["conv1"]
    expected = float((normal.mean + 2 * normal.std).max())
    assert ends(student, "relu1_quantizer")[1] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ConfigError, match="deviations"):
        build(BNStatistics, {"deviations": 0}, "option of bn_statistics")


@pytest.mark.parametrize("placement", ["every_input", "after_activation"])
def test_relu6_ends_at_6(placement: str) -> None:
    student, folded, statistics = prepared(
        "Grouped", Scheme.model_validate({"placement": placement})
    )
    BNStatistics().set_ranges(student, folded, statistics, SPEC)
    found = [n for n, m in student.named_modules() if isinstance(m, ActivationQuantizer)]
    clipped = [ends(student, name)[1] for name in found if name.startswith("act")]
    assert clipped
    assert max(clipped) <= 6.001


@pytest.mark.parametrize("name", ["NoNorm", "Dense"])
def test_a_range_that_cannot_be_known_is_named(name: str) -> None:
    student, folded, statistics = prepared(name, Scheme())
    with pytest.raises(ModelError, match="_quantizer is not known from batch norms"):
        BNStatistics().set_ranges(student, folded, statistics, SPEC)


def test_covers_real_values_without_wasting_much() -> None:
    """Of the built-in network: next to no value is outside, and no range four times too wide."""
    teacher = load_teacher(ModelConfig(source="digits_resnet8"))
    graph = capture(teacher.model, teacher.spec)
    student = insert_quantizers(fold_batch_norms(graph), Scheme())
    BNStatistics().set_ranges(
        student, fold_batch_norms(graph), layer_statistics(graph), teacher.spec
    )
    quantizers: dict[str, nn.Module] = {}
    for name, module in student.named_modules():
        if isinstance(module, ActivationQuantizer):
            module.enabled = False
            quantizers[name] = module
    digits = torch.from_numpy(load_digits_test()[0]).permute(0, 3, 1, 2) / 255
    seen: dict[str, Tensor] = {}
    with torch.no_grad(), tap_outputs(quantizers, seen.__setitem__):
        student((digits - teacher.spec.mean[0]) / teacher.spec.std[0])
    assert len(seen) == 8
    for name, values in seen.items():
        low, high = ends(student, name)
        code = (high - low) / 255
        outside = ((values < low - code) | (values > high + code)).float().mean()
        assert float(outside) < 1e-4, name
        assert high - low < 4 * float(values.max() - values.min().clamp(max=0)), name
