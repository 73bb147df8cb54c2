"""Steps and biases of all layers together: what moves, what stays, and what it lowers."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from datafree.calibrators.base import calibrate
from datafree.calibrators.mse import MSE
from datafree.config import Scheme
from datafree.errors import DataError
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.progress.deadline import Deadline
from datafree.quant.learned import LearnedStep, ScaledCodes
from datafree.quant.modules import QUANTIZED, ActivationQuantizer
from datafree.reconstruction._joint import Settings, learn_jointly
from datafree.reconstruction.adaround import AdaRound
from datafree.reconstruction.base import TOGETHER
from networks import SPEC, captured, images

SETTINGS = Settings(iterations=60, rate=3e-3, batch=16)


def prepared(network: str = "Tiny") -> tuple[fx.GraphModule, fx.GraphModule, Tensor]:
    folded = fold_batch_norms(captured(network))
    student = insert_quantizers(folded, Scheme(bits="W3A4", weight_range="mse"), SPEC)
    x = images(24, 5)
    calibrate(student, [x], MSE())
    for layer in (m for m in student.modules() if isinstance(m, QUANTIZED)):
        layer.weight = torch.nn.Parameter(layer.weight_quantizer(layer.weight).detach())
    return folded, student, x


def jointly(
    folded: fx.GraphModule, student: fx.GraphModule, x: Tensor, settings: Settings = SETTINGS
) -> tuple[float, float]:
    random = torch.Generator().manual_seed(0)
    return learn_jointly(folded, student, x, settings, random, lambda _: None)


def divergence(folded: fx.GraphModule, student: fx.GraphModule, x: Tensor) -> float:
    with torch.no_grad():
        wanted, actual = folded(x).log_softmax(1), student(x).log_softmax(1)
    return float(F.kl_div(actual, wanted, log_target=True, reduction="batchmean"))


def codes(student: fx.GraphModule) -> list[Tensor]:
    layers = [m for m in student.modules() if isinstance(m, QUANTIZED)]
    return [m.weight_quantizer.codes(m.weight.detach()) for m in layers]


@pytest.mark.parametrize("network", ["Tiny", "InPlaceResidual", "Grouped", "Tied"])
def test_the_answers_come_nearer_and_no_code_moves(network: str) -> None:
    folded, student, x = prepared(network)
    kept, first = codes(student), divergence(folded, student, x)
    scales = {n: v.clone() for n, v in student.state_dict().items() if n.endswith("scale")}
    before, after = jointly(folded, student, x)
    assert before == pytest.approx(first, rel=1e-3, abs=1e-6)
    assert after < 0.8 * before
    assert divergence(folded, student, x) == pytest.approx(after, rel=1e-3, abs=1e-6)
    for old, new in zip(kept, codes(student), strict=True):
        assert torch.equal(old, new)
    moved = [n for n, v in student.state_dict().items() if n in scales and (v != scales[n]).any()]
    assert any("weight" in name for name in moved)
    assert any("weight" not in name for name in moved)
    # Ordinary modules again: weights on their grids, nothing to be learned.
    assert not [m for m in student.modules() if isinstance(m, ScaledCodes | LearnedStep)]
    assert not any(p.requires_grad for p in student.parameters())
    for layer in (m for m in student.modules() if isinstance(m, QUANTIZED)):
        torch.testing.assert_close(layer.weight_quantizer(layer.weight), layer.weight)


def test_the_range_of_the_image_stays() -> None:
    folded, student, x = prepared()
    known = [
        m for m in student.modules() if isinstance(m, ActivationQuantizer) and m.covers is not None
    ]
    assert known
    before = [m.scale.clone() for m in known]
    jointly(folded, student, x)
    assert all(torch.equal(m.scale, old) for m, old in zip(known, before, strict=True))


def test_rates_are_shares_of_what_is_learned() -> None:
    """Adam's first step moves everything by its rate: a thousandth of every step."""
    folded, student, x = prepared()
    before = {n: v.clone() for n, v in student.state_dict().items() if n.endswith("r.scale")}
    jointly(folded, student, x, Settings(iterations=1, rate=1e-3, batch=24))
    after = student.state_dict()
    for name, old in before.items():
        shares = (after[name] / old - 1).abs()
        assert bool(((shares < 1e-6) | ((shares - 1e-3).abs() < 2e-5)).all())


def test_what_fails_leaves_the_student_as_it_was() -> None:
    folded, student, x = prepared()
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(FloatingPointError):
        jointly(folded, student, x, Settings(iterations=3, rate=1e38, batch=8))
    assert list(student.state_dict()) == list(before)
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name])


def test_without_time_nothing_moves() -> None:
    folded, student, x = prepared()
    before = copy.deepcopy(student.state_dict())
    random = torch.Generator().manual_seed(0)
    learn_jointly(folded, student, x, SETTINGS, random, lambda _: None, Deadline(0.0))
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_a_reconstruction_ends_with_it(tmp_path: Path) -> None:
    method = AdaRound(iterations=4, batch_size=8, joint_iterations=5)
    told: list[int] = []
    results: list[dict[str, Tensor]] = []
    for _ in range(2):
        folded, student, x = prepared()
        outcomes = method.reconstruct(folded, student, x, seed=3, checkpoint=tmp_path / "kept")
        assert outcomes[-1].block == TOGETHER
        assert outcomes[-1].rounded == 0
        told.append(len(outcomes))
        results.append(student.state_dict())
    assert told[0] == told[1]
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())
    without = AdaRound(iterations=4, batch_size=8)
    assert method.passes(24) == without.passes(24) * 9 / 4


def test_answers_that_are_no_numbers_name_the_option() -> None:
    folded, student, x = prepared()
    method = AdaRound(iterations=1, batch_size=8, joint_iterations=3, joint_lr=1e30)
    with pytest.raises(DataError, match="lower joint_lr"):
        method.reconstruct(folded, student, x)
