from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from datafree.config.outputs import Output, kind_of
from datafree.losses import (
    class_logits,
    class_rows,
    distillation,
    first_logits,
    inception_score_loss,
    parts,
    relative_error,
    soft_cross_entropy,
    values,
)

BOXES = Output(name="boxes", shape=(2, 3), kind="values")
MAP = Output(name="out", shape=(4, 2, 2), kind="dense_classes")
LOGIT = Output(name="sick", shape=(1,), kind="one_logit")
HEADS = (BOXES, MAP, LOGIT)


def side_by_side(count: int, seed: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    random = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(count, *head.shape, generator=random) for head in HEADS]
    return torch.cat([tensor.flatten(1) for tensor in tensors], 1), tensors


def test_parts_are_what_was_put_side_by_side() -> None:
    whole, tensors = side_by_side(5, 0)
    for part, tensor in zip(parts(whole, HEADS), tensors, strict=True):
        assert torch.equal(part, tensor)


def test_rows_of_classes_are_positions_and_images() -> None:
    whole, (_, dense, logit) = side_by_side(3, 0)
    rows, one = class_rows(whole, HEADS)
    assert rows.shape == (12, 4) and one.shape == (3, 2)
    assert torch.equal(rows[5], dense[1, :, 0, 1])  # second image, second position
    assert torch.equal(one[:, 1], logit[:, 0]) and not one[:, 0].any()
    assert torch.equal(first_logits(whole[:, -1:], (LOGIT,)), one)


def test_numbers_are_the_rest() -> None:
    whole, (boxes, _, _) = side_by_side(3, 0)
    (found,) = values(whole, HEADS)
    assert torch.equal(found, boxes.flatten(1))
    assert values(whole) == []


def test_relative_error_is_one_for_the_mean_and_none_for_the_same() -> None:
    expected = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 3 + 7
    assert relative_error(expected, expected) == 0
    assert relative_error(expected.mean(0).expand(50, 4), expected) == pytest.approx(1.0)
    one = torch.tensor([[1.0, 3.0]])
    assert relative_error(one + 1, one) == pytest.approx(1.0)  # 2 over 2


def test_distillation_adds_what_every_head_differs_by() -> None:
    whole, (boxes, dense, logit) = side_by_side(6, 0)
    other, (boxes2, dense2, logit2) = side_by_side(6, 1)
    temperature = 2.0

    def kl(own: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        logs = [F.log_softmax(x / temperature, 1) for x in (own, wanted)]
        return temperature**2 * (logs[1].exp() * (logs[1] - logs[0])).sum(1).mean()

    dense_rows = [x.permute(0, 2, 3, 1).reshape(-1, 4) for x in (dense, dense2)]
    logits = [torch.cat([torch.zeros(6, 1), x], 1) for x in (logit, logit2)]
    centred = boxes2 - boxes2.mean(0)
    wanted = kl(*dense_rows) + kl(*logits)
    wanted = wanted + (boxes - boxes2).square().sum() / centred.square().sum()
    found = distillation(whole, other, temperature, heads=HEADS)
    assert torch.allclose(found, wanted, rtol=1e-5)
    assert distillation(whole, whole, temperature, heads=HEADS).abs() < 1e-6


def test_a_loss_of_numbers_alone_moves() -> None:
    student = torch.randn(4, 6, requires_grad=True)
    loss = soft_cross_entropy(student, torch.randn(4, 6), (BOXES,))
    (gradient,) = torch.autograd.grad(loss, [student])
    assert bool((gradient != 0).all())
    assert inception_score_loss(student, heads=(BOXES,)) == 0


@pytest.mark.parametrize(
    ("shape", "task", "kind"),
    [
        ((10,), None, "classes"),
        ((1,), None, "one_logit"),
        ((10,), "values", "values"),
        ((21, 32, 32), None, "dense_classes"),
        ((21, 4, 4), None, "dense_classes"),
        ((3, 32, 32), None, "values"),  # an image as large as that of the input
        ((3, 64, 64), None, "values"),
        ((3, 32, 32), "dense", "dense_classes"),
        ((1, 32, 32), None, "values"),
        ((100, 85), None, "values"),
        ((), None, "values"),
    ],
)
def test_what_a_tensor_means_is_guessed_by_its_shape(shape, task, kind) -> None:  # pyright: ignore
    assert kind_of(shape, task, (3, 32, 32)) == kind


def test_one_logit_is_two_classes_of_which_a_positive_one_is_the_second() -> None:
    logits = torch.tensor([[2.0], [-3.0]])
    both = class_logits(logits)
    assert both.tolist() == [[0.0, 2.0], [0.0, -3.0]]
    assert torch.allclose(both.softmax(1)[:, 1], torch.sigmoid(logits[:, 0]))
    assert class_logits(both) is both


def test_without_heads_there_is_one_part_with_classes_and_no_value() -> None:
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert parts(logits, ()) == [logits]
    assert class_rows(logits) == [logits]
    assert values(logits) == []
    assert first_logits(logits) is logits
