"""HAST's images: the focal loss, and that they are of their class and match statistics."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.config.outputs import Output
from datafree.errors import ModelError
from datafree.synthesis.hast import HAST, focal_loss
from datafree.tensors import state_digest
from networks import SPEC, captured, images
from reference import batch_norm_inputs


def statistics_gap(model: nn.Module, x: Tensor) -> float:
    rows: list[Tensor] = []
    for norm, f in batch_norm_inputs(model, x):
        flat = f.transpose(0, 1).flatten(1)
        gap = (flat.mean(1) - norm.running_mean).square().mean()  # pyright: ignore
        rows.append(gap + (flat.var(1, correction=0) - norm.running_var).square().mean())  # pyright: ignore
    return float(torch.stack(rows).mean())


def test_the_focal_loss_by_hand() -> None:
    """Probabilities 3/4 and 1/4 of the class."""
    logits = torch.tensor([[3.0, 1.0], [3.0, 1.0]]).log()
    found = focal_loss(logits, torch.tensor([0, 1]), 2.0)
    p = torch.tensor([0.75, 0.25])
    torch.testing.assert_close(found, ((1 - p) ** 2 * -p.log()).mean())
    plain = focal_loss(logits, torch.tensor([0, 1]), 0.0)
    torch.testing.assert_close(plain, F.cross_entropy(logits, torch.tensor([0, 1])))


def test_gradients_go_through_the_factor_too() -> None:
    logits = torch.tensor([[0.3, -0.2, 0.1]], dtype=torch.float64, requires_grad=True)

    def loss(z: Tensor) -> Tensor:
        return focal_loss(z, torch.tensor([1]), 2.0)

    assert torch.autograd.gradcheck(loss, [logits])
    found = focal_loss(logits, torch.tensor([1]), 2.0)
    (slope,) = torch.autograd.grad(found, [logits])
    p = logits.softmax(1)[0, 1]
    by_p = 2 * (1 - p) * p.log() - (1 - p) ** 2 / p
    assert slope[0, 1].item() == pytest.approx((by_p * p * (1 - p)).item())


def test_an_image_that_is_sure_has_a_finite_gradient() -> None:
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    (slope,) = torch.autograd.grad(focal_loss(logits, torch.tensor([0]), 0.5), [logits])
    assert torch.isfinite(slope).all()


@pytest.mark.integration
def test_images_match_statistics_and_are_of_their_class() -> None:
    graph = captured("Tiny")
    before = state_digest(graph.state_dict())
    made = HAST(iterations=150, learning_rate=0.1).generate(graph, SPEC, 20, seed=1)
    plain = HAST(iterations=150, learning_rate=0.1, label_weight=0.0).generate(graph, SPEC, 20)
    assert state_digest(graph.state_dict()) == before
    assert made.targets is not None
    assert torch.bincount(made.targets, minlength=5).tolist() == [4] * 5
    noise = images(20, 3)
    gaps = [statistics_gap(graph, x) for x in (plain.images, noise, made.images)]
    assert gaps == sorted(gaps)
    own = F.cross_entropy(graph(made.images), made.targets)
    assert own < F.cross_entropy(graph(noise), made.targets)


@pytest.mark.integration
def test_hard_images_stay_harder_than_with_plain_cross_entropy() -> None:
    graph = captured("Tiny")
    sure = {
        focus: HAST(iterations=150, learning_rate=0.1, focus=focus).generate(graph, SPEC, 20)
        for focus in (0.0, 4.0)
    }
    mean = {
        focus: graph(made.images).softmax(1).gather(1, made.targets[:, None]).mean().item()  # pyright: ignore
        for focus, made in sure.items()
    }
    assert mean[4.0] < mean[0.0]


def test_a_network_that_tells_no_classes_is_refused() -> None:
    numbers = SPEC.model_copy(update={"outputs": (Output(name="x", shape=(5,), kind="values"),)})
    with pytest.raises(ModelError, match="tells none"):
        HAST().prepare(captured("Tiny"), numbers, torch.Generator())


def test_a_seen_batch_may_be_cropped() -> None:
    x = images(8)
    random = torch.Generator().manual_seed(0)
    assert torch.equal(HAST()._seen(x, random), x)
    assert not torch.equal(HAST(crop_probability=1.0)._seen(x, random), x)
