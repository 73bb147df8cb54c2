"""The term of what the network answers, where learned rounding has it (PD-Quant)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from datafree.calibrators.base import calibrate
from datafree.calibrators.mse import MSE
from datafree.config import ModelConfig, Scheme
from datafree.config.outputs import Output
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.models import load_teacher
from datafree.quant.modules import ActivationQuantizer
from datafree.reconstruction import _learn
from datafree.reconstruction._error import output_error, prediction_error
from datafree.reconstruction._learn import Task
from datafree.reconstruction.adaround import AdaRound
from datafree.reconstruction.base import Reconstructor
from datafree.reconstruction.qdrop import QDrop
from datafree.testing.networks import InPlaceResidual, images, ready

QUICK: dict[str, Any] = {"iterations": 3, "batch_size": 8, "lr_factor": 1.0}


def prepared() -> tuple[fx.GraphModule, fx.GraphModule, Tensor]:
    torch.manual_seed(0)
    folded = fold_batch_norms(ready(InPlaceResidual()))
    student = insert_quantizers(folded, Scheme(bits="W2A4", weight_range="mse"))
    x = images(24, 5)
    calibrate(student, [x], MSE(), observe="float")
    return folded, student, x


def divergence(folded: fx.GraphModule, student: fx.GraphModule, x: Tensor) -> float:
    with torch.no_grad():
        wanted, actual = folded(x).log_softmax(1), student(x).log_softmax(1)
    return float(F.kl_div(actual, wanted, log_target=True, reduction="batchmean"))


def tasks(monkeypatch: pytest.MonkeyPatch, method: Reconstructor) -> list[tuple[Task, Tensor]]:
    """The unit and the loss of every step."""
    seen: list[tuple[Task, Tensor]] = []
    inner = _learn._loss

    def loss(task: Task, index: Tensor, generator: torch.Generator) -> Tensor:
        found = inner(task, index, generator)
        seen.append((task, found.detach()))
        return found

    monkeypatch.setattr(_learn, "_loss", loss)
    folded, student, x = prepared()
    method.reconstruct(folded, student, x)
    return seen


def test_the_divergence_of_softened_answers() -> None:
    """One image, two classes, by hand: p = (1/2, 1/2) at any temperature."""
    wanted, answers = torch.zeros(1, 2), torch.tensor([[4.0, 0.0]])
    high = 1 / (1 + torch.exp(torch.tensor(-1.0)))
    expected = -0.5 * (high.log() + (1 - high).log()) - torch.log(torch.tensor(2.0))
    found = prediction_error(answers, wanted, temperature=4.0)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    assert float(prediction_error(wanted, wanted, 1.0)) == pytest.approx(0, abs=1e-7)
    heads = (
        Output(name="a", kind="classes", shape=(2,)),
        Output(name="b", kind="classes", shape=(2,)),
    )
    twice = prediction_error(answers.repeat(1, 2), wanted.repeat(1, 2), 4.0, heads)
    assert float(twice) == pytest.approx(2 * float(expected), rel=1e-5)


def test_behind_the_float_block_comes_what_the_float_network_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rest of the network belongs to the unit's end, and the answers to the images."""
    folded, _, x = prepared()
    seen = tasks(monkeypatch, AdaRound(**QUICK, unit="block", prediction_weight=10.0))
    units = {task.unit.end: task for task, _ in seen}
    assert len(units) > 1
    for task in units.values():
        assert task.answers is not None
        every = slice(0, len(x))
        with torch.no_grad():
            answered = task.answers.network(task.targets[every])
            torch.testing.assert_close(answered, folded(x), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(task.answers.wanted[every], folded(x))


def test_the_loss_is_the_block_error_and_the_weighted_divergence() -> None:
    """From its parts, where nothing is drawn at random."""
    folded, student, x = prepared()
    found: list[float] = []

    def compare(task: Task, index: Tensor, generator: torch.Generator) -> Tensor:
        loss = _learn_loss(task, index, generator)
        with torch.no_grad():
            outputs = task.part(task.inputs[index])
            assert task.answers is not None
            wanted, given = folded(x)[index], task.answers.network(outputs)
            soft = [(values / 4).log_softmax(1) for values in (given, wanted)]
            term = F.kl_div(*soft, log_target=True, reduction="batchmean")
            own = output_error(outputs, task.targets[index])
        found.append(float(loss.detach()) - float(own + 10 * term))
        return loss

    _learn_loss = _learn._loss
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_learn, "_loss", compare)
        method = AdaRound(**QUICK, unit="block", prediction_weight=10.0)
        method.reconstruct(folded, student, x)
    assert found
    assert max(map(abs, found)) < 1e-5


def test_what_is_dropped_into_a_block_is_not_asked_for_the_answer() -> None:
    """Its own inputs pass beside the mixed ones, in one batch."""
    folded, student, x = prepared()
    sizes: list[tuple[int, int]] = []
    inner = _learn._loss

    def loss(task: Task, index: Tensor, generator: torch.Generator) -> Tensor:
        passed: list[Tensor] = []
        hook = task.part.register_forward_pre_hook(lambda _, given: passed.append(given[0]))
        found = inner(task, index, generator)
        hook.remove()
        (batch,) = passed
        sizes.append((len(batch), len(index)))
        assert torch.equal(batch[len(index) :], task.inputs[index])
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_learn, "_loss", loss)
        QDrop(**QUICK, prediction_weight=10.0).reconstruct(folded, student, x)
    assert set(sizes) == {(16, 8)}


def test_answers_come_nearer_than_without_it() -> None:
    """On a trained network, whose answers say something."""
    teacher = load_teacher(ModelConfig(source="digits_resnet8"))
    folded = fold_batch_norms(capture(teacher.model, teacher.spec))
    x = images(64, 0, teacher.spec.shape)
    found: list[float] = []
    for weight in (0.0, 100.0):
        student = insert_quantizers(folded, Scheme(bits="W2A4", weight_range="mse"))
        calibrate(student, [x], MSE(), observe="float")
        how = QDrop(iterations=100, batch_size=16, prediction_temperature=1.0)
        method = how.model_copy(update={"prediction_weight": weight})
        method.reconstruct(folded, student, x)
        found.append(divergence(folded, student, x))
    assert found[1] < 0.7 * found[0]


def test_without_a_weight_nothing_of_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(task.answers is None for task, _ in tasks(monkeypatch, AdaRound(**QUICK)))


def test_layers_inside_a_block_go_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = tasks(monkeypatch, AdaRound(**QUICK, unit="layer", prediction_weight=10.0))
    ends = {task.unit.end: task.answers is not None for task, _ in seen}
    assert set(ends.values()) == {True, False}
    assert all(torch.isfinite(loss) for _, loss in seen)


def test_no_quantizer_is_left_learning() -> None:
    folded, student, x = prepared()
    QDrop(**QUICK, prediction_weight=10.0).reconstruct(folded, student, x)
    kinds = {type(m) for n, m in student.named_modules() if n.endswith("quantizer")}
    assert ActivationQuantizer in kinds
    assert not any(p.requires_grad for p in student.parameters())
