"""HAST's losses against formulas written out here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from datafree.calibrators.base import calibrate
from datafree.calibrators.mse import MSE
from datafree.config import Scheme
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.training import Dream
from datafree.training.hast import HAST
from networks import SPEC, captured, images

X = images(6, 2)


def pair() -> tuple[fx.GraphModule, fx.GraphModule]:
    graph = captured("Grouped")
    student = insert_quantizers(fold_batch_norms(graph), Scheme(bits="W4A8"), SPEC)
    calibrate(student, [X], MSE())
    return graph, student


def losses(method: HAST, teacher: fx.GraphModule, student: fx.GraphModule) -> dict[str, Tensor]:
    dream = Dream(X.clone(), None, teacher(X).detach(), [], [], 0, torch.Generator())
    memory: Any = method.remember(teacher, SPEC, torch.Generator())
    return method.student_losses(student, dream, memory)


def maps(network: fx.GraphModule, paths: tuple[str, ...], x: Tensor) -> list[Tensor]:
    seen: dict[str, Tensor] = {}
    handles = [
        network.get_submodule(p).register_forward_hook(lambda _m, _i, o, p=p: seen.update({p: o}))
        for p in paths
    ]
    network(x)
    for handle in handles:
        handle.remove()
    return [seen[path] for path in paths]


def attentions(features: Tensor) -> Tensor:
    squares = features.pow(2).flatten(2).mean(2)
    return squares / squares.pow(2).sum(1, keepdim=True).sqrt()


def whole(teacher: fx.GraphModule, student: fx.GraphModule, x: Tensor) -> tuple[Tensor, Tensor]:
    """Both terms with weights 20 and 2000, of images x."""
    p, q = (F.softmax(network(x) / 20, 1) for network in (teacher, student))
    divergence = 20 * 400 * (p * (p / q).log()).sum(1).mean()
    norms = maps(teacher, ("bn0", "bn1", "bn2", "bn3"), x)
    layers = maps(student, ("stem", "depthwise", "pointwise", "grouped"), x)
    gaps = [
        (attentions(a) - attentions(b)).pow(2).mean() for a, b in zip(norms, layers, strict=True)
    ]
    return divergence, 2000 * torch.stack(gaps).sum()


def test_both_terms_for_the_images_and_for_harder_ones() -> None:
    teacher, student = pair()
    found = losses(HAST(), teacher, student)
    x = X.clone().requires_grad_()
    divergence, features = whole(teacher, student, x)
    torch.testing.assert_close(found["distillation"], divergence, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found["features"], features, rtol=1e-3, atol=1e-4)
    (slope,) = torch.autograd.grad(divergence + features, [x])
    harder = (x + 0.02 * slope.sign()).detach()
    divergence, features = whole(teacher, student, harder)
    hard = "{} of harder images".format
    torch.testing.assert_close(found[hard("distillation")], divergence, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(found[hard("features")], features, rtol=1e-2, atol=1e-3)


def test_harder_images_are_harder() -> None:
    teacher, student = pair()
    found = losses(HAST(perturbation=0.05), teacher, student)
    easy = found["distillation"] + found["features"]
    assert found["distillation of harder images"] + found["features of harder images"] > easy


def test_terms_without_weight_are_left_out() -> None:
    teacher, student = pair()
    assert set(losses(HAST(perturbation=0.0), teacher, student)) == {"distillation", "features"}
    bare = HAST(perturbation=0.0, feature_weight=0.0)
    assert set(losses(bare, teacher, student)) == {"distillation"}


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    teacher = captured("Grouped")
    found = losses(HAST(), teacher, fold_batch_norms(teacher))
    assert all(value.item() == pytest.approx(0, abs=1e-4) for value in found.values())
