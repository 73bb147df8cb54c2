from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx

from datafree.allocation import isolation as module
from datafree.allocation.isolation import isolation
from datafree.calibrators.base import calibrate
from datafree.calibrators.minmax import MinMax
from datafree.config import Scheme
from datafree.errors import ConfigError
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers, quantizable_layers
from datafree.quant.modules import QUANTIZED, ActivationQuantizer
from datafree.testing.watching import fingerprint
from networks import captured, images


def pair(name: str = "Grouped", **scheme: Any) -> tuple[fx.GraphModule, fx.GraphModule]:
    folded = fold_batch_norms(captured(name))
    wanted: dict[str, Any] = {"bits": "W3A3", **scheme}
    student = insert_quantizers(folded, Scheme(**wanted))
    calibrate(student, [images(16)], MinMax())
    return folded, student


def kl(expected: Tensor, actual: Tensor) -> float:
    found, wanted = (F.log_softmax(rows.double(), 1) for rows in (actual, expected))
    return float(F.kl_div(found, wanted, log_target=True, reduction="batchmean"))


def switched(student: fx.GraphModule, on: set[str]) -> fx.GraphModule:
    """A copy whose layers outside `on`, and the quantizers right before them, are switched off."""
    made = copy.deepcopy(student)
    for node in made.graph.nodes:
        if node.op != "call_module" or str(node.target) in on:
            continue
        layer = made.get_submodule(str(node.target))
        if isinstance(layer, QUANTIZED):
            layer.weight_quantizer.enabled = False
            before = made.get_submodule(str(node.all_input_nodes[0].target))
            assert isinstance(before, ActivationQuantizer)
            before.enabled = False
    return made


@pytest.mark.parametrize("trained", [False, True])
def test_both_measures_by_switches(trained: bool) -> None:
    """Without reconstruction the weights of a student are those of its teacher."""
    folded, student = pair()
    before = fingerprint(folded), fingerprint(student)
    found = isolation(folded, student, images(12), trained=trained)
    assert (fingerprint(folded), fingerprint(student)) == before
    x, layers = images(12), set(quantizable_layers(folded))
    assert (found.images, found.layers, set(found.shares)) == (12, len(layers), layers)
    with torch.no_grad():
        expected = folded(x)
        assert found.total == pytest.approx(kl(expected, student(x)), rel=1e-4)
        for path, share in found.shares.items():
            alone, without = switched(student, {path}), switched(student, layers - {path})
            assert share.alone == pytest.approx(kl(expected, alone(x)), rel=1e-3, abs=1e-7)
            assert share.without == pytest.approx(kl(expected, without(x)), rel=1e-3, abs=1e-7)


def test_weights_that_were_learned_are_set_aside() -> None:
    """Rounding moved the weights themselves; alone means the teacher's weights elsewhere."""
    folded, student = pair()
    layer = student.get_submodule("depthwise")
    layer.weight.data += 0.5  # pyright: ignore
    found = isolation(folded, student, images(12))
    assert max(found.shares, key=lambda path: found.shares[path].alone) == "depthwise"
    clean = switched(pair()[1], set(found.shares) - {"depthwise"})
    with torch.no_grad():
        wanted = kl(folded(images(12)), clean(images(12)))
    assert found.shares["depthwise"].without == pytest.approx(wanted, rel=1e-3)


def test_the_weakest_layer_is_not_the_last() -> None:
    folded, student = pair(bits="W8A8", layer_bits={"depthwise": "W2A2"})
    assert isolation(folded, student, images(16)).weakest == "depthwise"


def test_time_that_is_over_leaves_layers_out(monkeypatch: pytest.MonkeyPatch) -> None:
    folded, student = pair()
    clock = iter(range(1000))
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    found = isolation(folded, student, images(8), seconds=2.5)
    assert found.layers == 5
    assert list(found.shares) == ["stem", "pointwise", "linear"]


def test_many_layers_get_fewer_images(monkeypatch: pytest.MonkeyPatch) -> None:
    folded, student = pair()
    assert isolation(folded, student, images(40)).images == 32
    monkeypatch.setattr(module, "_PASSES", 100)
    assert isolation(folded, student, images(40)).images == 10
    monkeypatch.setattr(module, "_PASSES", 1)
    assert isolation(folded, student, images(40)).images == 8


@given(st.integers(1, 70))
def test_an_order_that_spreads(count: int) -> None:
    names = [str(i) for i in range(count)]
    order = module._spread(names)
    assert sorted(order, key=int) == names
    for done in range(2, count):
        seen = sorted(map(int, order[:done]))
        gaps = [b - a for a, b in zip(seen, [*seen[1:], count], strict=True)]
        assert max(gaps) <= 2 * 2 ** (count - 1).bit_length() / done


@pytest.mark.parametrize("wrong", [{"images": 0}, {"seconds": 0.0}])
def test_nothing_to_measure_on(wrong: dict[str, Any]) -> None:
    folded, student = pair()
    with pytest.raises(ConfigError, match="give more than none"):
        isolation(folded, student, images(wrong.pop("images", 4)), **wrong)
