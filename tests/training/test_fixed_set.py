"""Losses, crops and images of the training on a fixed set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from datafree.calibrators.mse import MSE
from datafree.config import Scheme, build
from datafree.errors import ConfigError, DataError
from datafree.graph.fold import fold_batch_norms
from datafree.quant.modules import ActivationQuantizer
from datafree.tensors import state_digest
from datafree.training import Dream, Task, train
from datafree.training._sources import Album
from datafree.training.fixed_set import FixedSet, classes_of
from datafree.training.gdfq import GDFQ
from networks import SPEC, captured, images

QUICK: dict[str, Any] = {
    "iterations": 6, "batch_size": 8, "holdout": 16, "checks": 2, "student_lr": 1e-3,
}  # fmt: skip


def task(**changes: Any) -> Task:
    graph = captured("Tiny")
    made = Task(
        graph, fold_batch_norms(graph), SPEC, Scheme(bits="W3A4"), MSE(), images=images(24),
        targets=torch.arange(24) % 5, made_by="real",
    )  # fmt: skip
    return replace(made, **changes)


def dream(labels: Tensor | None = None) -> Dream:
    x = images(8, 1)
    return Dream(x, labels, captured("Tiny")(x).detach(), [], [], 0, torch.Generator())


def logits() -> Tensor:
    return torch.randn(8, 5, generator=torch.Generator().manual_seed(0))


def test_the_student_s_loss() -> None:
    asked = torch.arange(8) % 5
    given, own = dream(asked), logits()
    method = FixedSet(distillation_weight=3.0, temperature=2.0, label_weight=0.25)
    terms = method.student_terms(own, given)
    p, q = (F.softmax(value / 2, 1) for value in (given.logits, own))
    torch.testing.assert_close(terms["distillation"], 3 * 4 * (p * (p / q).log()).sum(1).mean())
    picked = torch.log_softmax(own, 1)[torch.arange(8), asked]
    torch.testing.assert_close(terms["classes"], -0.25 * picked.mean())


def test_its_weight_is_one_on_half_the_variance_of_the_logits_gap() -> None:
    """What orders the methods (algorithms-2, 0): 20 here, 1 / K in GDFQ's code."""
    given = dream(torch.arange(8) % 5)
    own = (given.logits + 0.1 * logits()).requires_grad_()
    gap = given.logits - own
    half = 0.5 * gap.var(1, correction=0).mean()
    (slope,) = torch.autograd.grad(half, [own], retain_graph=True)
    for method, weight in ((FixedSet(), 20.0), (GDFQ(reduction="element"), 1 / 5)):
        term = method.student_terms(own, given)["distillation"]
        (found,) = torch.autograd.grad(term, [own], retain_graph=True)
        assert term.item() == pytest.approx(weight * half.item(), rel=0.01)
        torch.testing.assert_close(found, weight * slope, rtol=0.05, atol=1e-3 * weight)


def test_classes_are_those_of_the_images_or_else_the_teacher_s() -> None:
    asked = torch.arange(8) % 5
    assert classes_of(dream(asked)) is asked
    bare = dream()
    found = classes_of(bare)
    assert found is not None
    assert torch.equal(found, bare.logits.argmax(1))


def test_without_any_weight_nothing_is_learned() -> None:
    method = FixedSet(**QUICK, distillation_weight=0.0, weight_decay=0.0)
    trained = train(method, task())
    assert trained.summary["fine-tuning"]["history"][-1]["student distillation"] == 0
    start = train(method.model_copy(update={"iterations": 1}), task())
    assert state_digest(trained.last.state_dict()) == state_digest(start.last.state_dict())


def test_a_step_sees_every_image_once_before_any_twice() -> None:
    album = Album(
        torch.arange(10.0).view(-1, 1, 1, 1), torch.arange(10), lambda x, _: x, torch.device("cpu")
    )
    random = torch.Generator().manual_seed(0)
    few, many = album.draw(4, random), album.draw(25, random)
    assert len(set(few.images.flatten().tolist())) == 4
    counts = torch.bincount(many.images.flatten().long(), minlength=10)
    assert sorted(counts.tolist()) == [2] * 5 + [3] * 5
    assert many.labels is not None
    assert torch.equal(many.labels.float(), many.images.flatten())
    assert album.kept(3, random).flatten().tolist() == [0.0, 1.0, 2.0]
    assert len(album.kept(99, random)) == 10


def test_crops_and_mirrors() -> None:
    x, random = images(64), torch.Generator().manual_seed(1)
    assert FixedSet(crop_scale=1.0, mirror=False).seen(x, random) is x
    mirrored = FixedSet(crop_scale=1.0).seen(x, random)
    same = torch.tensor([torch.allclose(a, b, atol=1e-5) for a, b in zip(x, mirrored, strict=True)])
    turned = [torch.allclose(a.flip(2), b, atol=1e-5) for a, b in zip(x, mirrored, strict=True)]
    assert 16 < int(same.sum()) < 48
    assert torch.equal(same, ~torch.tensor(turned))
    ramp = torch.linspace(0, 1, 8).expand(64, 3, 8, 8).contiguous()
    cropped = FixedSet(mirror=False).seen(ramp, random)
    width = (cropped[:, 0, 0].amax(1) - cropped[:, 0, 0].amin(1)).numpy()
    assert width.min() >= 0.5**0.5 * (3 / 4) ** 0.5 * 0.85
    assert width.max() <= 1


def test_what_a_generator_has_is_no_option() -> None:
    for name in ("warmup", "latent", "generator_lr", "update_generator", "student_steps"):
        with pytest.raises(ConfigError, match=f"{name} is not known"):
            build(FixedSet, {name: 1}, "fixed_set")


def test_ranges_come_from_the_set_and_the_record_says_what_it_was() -> None:
    one = train(FixedSet(**QUICK), task())
    two = train(FixedSet(**QUICK), task(images=10 * images(24), made_by="noise"))
    scales = [
        next(m.scale for m in t.last.modules() if isinstance(m, ActivationQuantizer))
        for t in (one, two)
    ]
    assert scales[1] > 3 * scales[0]
    told = [t.summary["fine-tuning"]["learned_from"] for t in (one, two)]
    assert told == [{"images": 24, "method": "real"}, {"images": 24, "method": "noise"}]
    assert set(one.summary) == {"fine-tuning"}
    assert one.generator is None


def test_labels_are_part_of_the_request(tmp_path: Any) -> None:
    """A checkpoint of other classes is left alone."""
    method = FixedSet(**QUICK, label_weight=1.0)
    train(method, task(), checkpoint=tmp_path)
    other = task(targets=(torch.arange(24) + 1) % 5)
    found = train(method, other, checkpoint=tmp_path)
    fresh = train(method, other)
    assert state_digest(found.last.state_dict()) == state_digest(fresh.last.state_dict())


@pytest.mark.parametrize("given", [None, images(1)])
def test_without_images_it_is_refused(given: Tensor | None) -> None:
    count = 0 if given is None else 1
    with pytest.raises(ConfigError, match=f"fixed set of images, and there are {count}"):
        train(FixedSet(**QUICK), task(images=given, targets=None))


def test_the_student_comes_nearer_to_its_teacher() -> None:
    longer: dict[str, Any] = {**QUICK, "iterations": 100, "student_lr": 5e-3}
    method = FixedSet(**longer)
    coarse = task(scheme=Scheme(bits="W2A8"))
    told = train(method, coarse).summary["fine-tuning"]["history"]
    assert told[-1]["kl"] < 0.7 * told[0]["kl"]


def test_losses_that_diverge_name_the_one_rate_there_is() -> None:
    wild: dict[str, Any] = {**QUICK, "iterations": 40, "student_lr": 1e30}
    with pytest.raises(DataError, match=r"lower the learning rates \(--training-option student_lr"):
        train(FixedSet(**wild), task())
