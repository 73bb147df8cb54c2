from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from datafree.calibrators.base import calibrate
from datafree.calibrators.minmax import MinMax
from datafree.config import Scheme
from datafree.evaluate import compare, layer_sqnr, top1
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.testing.watching import fingerprint
from networks import captured, images


def logits(*rows: list[float]) -> Tensor:
    return torch.tensor(rows)


def test_top1_by_hand() -> None:
    first = logits([1, 2, 0], [3, 0, 1])
    second = logits([0, 0, 5])
    batches = [(first, torch.tensor([1, 2])), (second, torch.tensor([2]))]
    steps: list[int] = []
    result = top1({"same": lambda x: x, "flipped": lambda x: -x}, iter(batches), steps.append)
    # largest: 1, 0, 2 against 1, 2, 2; smallest: 2, 1, 0 (first of equals)
    assert result.top1 == {"same": pytest.approx(200 / 3), "flipped": 0}
    assert result.images == 3
    assert steps == [2, 1]


def test_top1_of_no_images() -> None:
    result = top1({"a": lambda x: x}, [])
    assert result.top1 == {"a": 0}
    assert result.images == 0


def test_comparison_by_hand() -> None:
    """softmax(log p) = p, so the logits are logs of the probabilities wanted."""
    p = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]])
    q = torch.tensor([[0.25, 0.5, 0.25], [0.2, 0.7, 0.1], [0.2, 0.2, 0.6]])
    tables = {0: (p[:2], q[:2]), 1: (p[2:], q[2:])}
    result = compare(
        lambda x: tables[int(x[0])][0].log(),
        lambda x: tables[int(x[0])][1].log(),
        [torch.tensor([0, 0]), torch.tensor([1])],
    )
    kl = [
        0.5 * math.log(2) + 0.25 * math.log(0.5),
        0.0,
        0.2 * math.log(0.5) + 0.8 * math.log(0.8 / 0.6),
    ]
    assert result.images == 3
    assert result.agreement == pytest.approx(200 / 3)
    assert result.kl == pytest.approx(sum(kl) / 3, rel=1e-5)
    assert result.difference == pytest.approx(math.log(2), rel=1e-5)


def test_equal_predictors_agree() -> None:
    result = compare(lambda x: x, lambda x: x, [images(4).flatten(1)])
    assert (result.agreement, result.kl, result.difference) == (100, 0, 0)


def test_layer_noise_by_hand() -> None:
    folded = fold_batch_norms(captured("Tiny"))
    student = insert_quantizers(folded, Scheme(bits="W3A4"))
    batches = [images(4, 1), images(2, 2)]
    calibrate(student, batches, MinMax())
    before = fingerprint(folded), fingerprint(student)
    result = layer_sqnr(folded, student, iter(batches))
    assert (fingerprint(folded), fingerprint(student)) == before
    assert list(result) == ["conv1", "conv2", "linear"]

    with torch.no_grad():
        pairs = [(folded(batch), student(batch)) for batch in batches]
    signal = sum(float(y.double().square().sum()) for y, _ in pairs)
    noise = sum(float((y - z).double().square().sum()) for y, z in pairs)
    assert result["linear"] == pytest.approx(10 * math.log10(signal / noise), rel=1e-5)

    with torch.no_grad():
        x = torch.cat(batches)
        y = folded.get_submodule("conv1")(x)
        z = student.get_submodule("conv1")(student.get_submodule("x_quantizer")(x))
    expected = 10 * math.log10(float(y.square().sum() / (y - z).square().sum()))
    assert result["conv1"] == pytest.approx(expected, rel=1e-4)
    assert 0 < result["linear"] < 60


def test_no_noise_is_infinite() -> None:
    folded = fold_batch_norms(captured("Tiny"))
    student = insert_quantizers(folded, Scheme(bits="W8A32"))
    for name in ("conv1", "conv2", "linear"):
        student.get_submodule(f"{name}.weight_quantizer").enabled = False  # pyright: ignore
    assert set(layer_sqnr(folded, student, [images(2)]).values()) == {math.inf}


def test_layers_called_twice_are_compared_call_by_call() -> None:
    folded = fold_batch_norms(captured("Tied"))
    student = insert_quantizers(folded, Scheme(bits="W8A32"))
    result = layer_sqnr(folded, student, [images(2)])
    twice = [str(n.target) for n in student.graph.nodes if n.op == "call_module"]
    (name,) = {name for name in twice if twice.count(name) == 2}
    assert 20 < result[name] < 80
