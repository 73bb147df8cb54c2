from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from datafree.calibrators.base import calibrate
from datafree.calibrators.minmax import MinMax
from datafree.config import ModelConfig, Scheme
from datafree.corrections.split_outliers import (
    origins,
    split_order,
    split_outliers,
    split_weight,
)
from datafree.errors import ConfigError, ModelError
from datafree.export.onnx import Onnx
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import first_calls, insert_quantizers
from datafree.models import load_teacher
from datafree.quant.modules import ActivationQuantizer, ChannelCopies
from datafree.testing.watching import fingerprint
from networks import NETWORKS, captured, images

FOUR_BITS = Scheme(
    bits="W4A8", weight_granularity="tensor", symmetric_weights=True,
    symmetric_activations=True,
)  # fmt: skip


@given(
    ratio=st.floats(-40, 40), step=st.floats(1e-3, 10), again=st.sampled_from([0, 1]),
)  # fmt: skip
def test_rounded_halves_sum_to_the_rounded_weight(ratio: float, step: float, again: int) -> None:
    """Q(w/2 - D/4) + Q(w/2 + D/4) = Q(w), and so once more for either half (OCS, section 3.3)."""
    assume(abs(ratio - math.floor(ratio) - 0.5) > 1e-6)  # a tie may be rounded either way
    assume(all(abs(r - math.floor(r) - 0.5) > 1e-6 for r in (ratio / 2 - 0.25, ratio / 2 + 0.25)))
    weight = torch.tensor([[ratio * step]], dtype=torch.float64)
    size = torch.tensor(step, dtype=torch.float64)
    for order in ([0], [0, again]):
        parts = split_weight(weight, order, size)
        assert float(parts.sum()) == pytest.approx(ratio * step, abs=1e-9)
        assert float(torch.round(parts / size).sum()) == round(ratio)


def test_halves_alike_may_round_the_same_way_twice() -> None:
    parts = split_weight(torch.tensor([[3.2]]), [0])
    torch.testing.assert_close(parts.float(), torch.tensor([[1.6, 1.6]]))
    assert float(torch.round(parts).sum()) == 4 != round(3.2)


def test_order_by_hand() -> None:
    """Largest 8, 3, 5: halve 8, then 5, then one of the 4s, then the other."""
    weight = torch.tensor([[1.0, 3, -5], [-8, 0, 2]])
    assert split_order(weight, 4) == [0, 2, 0, 3]
    assert origins(3, [0, 2, 0, 3]).tolist() == [0, 1, 2, 0, 2, 0, 0]
    wide = split_weight(weight, [0, 2, 0, 3])
    expected = [[0.25, 3, -2.5, 0.25, -2.5, 0.25, 0.25], [-2, 0, 1, -2, 1, -2, -2]]
    assert wide.tolist() == expected


@pytest.mark.parametrize("aware", [True, False])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_outputs_stay_and_the_graph_given_too(name: str, *, aware: bool) -> None:
    folded = fold_batch_norms(captured(name))
    before = fingerprint(folded)
    split = split_outliers(folded, 0.4, FOUR_BITS, quantization_aware=aware)
    assert fingerprint(folded) == before
    torch.testing.assert_close(split(images(5)), folded(images(5)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("Tiny", {"conv2": 2}),
        ("Grouped", {"pointwise": 4}),  # neither depthwise nor grouped
        ("Tied", {"twin_1": 2}),  # `twin` is called twice
        ("InPlaceResidual", dict[str, int]()),
        ("NoNorm", dict[str, int]()),
    ],
)
def test_which_layers_and_how_much(name: str, split: dict[str, int]) -> None:
    folded = fold_batch_norms(captured(name))
    graph = split_outliers(folded, 0.4, FOUR_BITS)
    copies = {n: m for n, m in graph.named_modules() if isinstance(m, ChannelCopies)}
    names = {path: f"{node.name}_copies" for path, node in first_calls(folded).items()}
    assert set(copies) == {names[path] for path in split}
    for path, more in split.items():
        wide = graph.get_parameter(f"{path}.weight").shape[1]
        assert wide == folded.get_parameter(f"{path}.weight").shape[1] + more
        assert len(copies[names[path]].origin) == wide


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_student_rounds_the_sum(granularity: str, *, symmetric: bool) -> None:
    """On the student's own grid, the copies of a channel together are the rounded channel."""
    scheme = FOUR_BITS.model_copy(
        update={"weight_granularity": granularity, "symmetric_weights": symmetric}
    )
    folded = fold_batch_norms(captured("Tiny"))
    graph = split_outliers(folded, 0.75, scheme)
    layer = insert_quantizers(graph, scheme).get_submodule("conv2")
    assert isinstance(layer, nn.Conv2d)
    quantizer = layer.get_submodule("weight_quantizer")
    copies = graph.get_submodule("conv2_copies")
    assert isinstance(copies, ChannelCopies)
    scale = quantizer.scale
    assert isinstance(scale, Tensor)
    rounded = torch.round(layer.weight / scale)
    exact = folded.get_parameter("conv2.weight") / scale
    together = torch.zeros_like(exact).index_add(1, copies.origin, rounded)
    safe = ((exact - exact.floor() - 0.5).abs() > 1e-3).float()
    assert float(safe.mean()) > 0.9
    torch.testing.assert_close(together * safe, torch.round(exact) * safe, rtol=0, atol=0)


def test_outliers_cost_less() -> None:
    folded = fold_batch_norms(captured("Tiny"))
    with torch.no_grad():
        folded.get_parameter("conv2.weight")[0, 1] *= 8
    x = images(32)
    scheme = FOUR_BITS.model_copy(update={"bits": "W4A32"})
    plain, less = (
        float((insert_quantizers(g, scheme)(x) - folded(x)).square().mean())
        for g in (folded, split_outliers(folded, 0.25, scheme))
    )
    assert less < plain / 2


def test_quantizers_of_copies_keep_the_sign_of_what_they_copy() -> None:
    student = insert_quantizers(
        split_outliers(fold_batch_norms(captured("Tiny")), 0.4, FOUR_BITS), FOUR_BITS
    )
    quantizer = student.get_submodule("conv2_copies_quantizer")
    assert isinstance(quantizer, ActivationQuantizer)
    assert not quantizer.grid.signed


def test_what_is_refused() -> None:
    folded = fold_batch_norms(captured("Tiny"))
    for ratio in (0, -0.1, 1.5, math.nan):
        with pytest.raises(ConfigError, match="above 0, at most 1"):
            split_outliers(folded, ratio, FOUR_BITS)
    with torch.no_grad():
        folded.get_parameter("conv2.weight")[0] = math.inf
    with pytest.raises(ModelError, match="conv2"):
        split_outliers(folded, 0.1, FOUR_BITS)


@pytest.mark.integration
def test_onnx_computes_the_same(tmp_path: Path) -> None:
    teacher = load_teacher(ModelConfig(source="digits_resnet8"))
    folded = fold_batch_norms(capture(teacher.model, teacher.spec))
    student = insert_quantizers(split_outliers(folded, 0.05, FOUR_BITS), FOUR_BITS)
    x = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    calibrate(student, [x], MinMax())
    report = Onnx().export(student, teacher.spec, tmp_path / "student.onnx", check=x)
    assert report.parity.mismatches == 0
    assert report.parity.noise < 1e-3
