"""SynQ's filter, class maps and labels against formulas written out here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from datafree.calibrators.base import calibrate
from datafree.calibrators.mse import MSE
from datafree.config import Scheme
from datafree.config.outputs import Output
from datafree.errors import ModelError
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.losses import low_pass
from datafree.training import Dream
from datafree.training.fixed_set import FixedSet
from datafree.training.synq import SynQ, class_map, easy_cross_entropy, stretched
from networks import SPEC, captured, images

X, ASKED = images(6, 2), torch.arange(6) % 5


def pair() -> tuple[fx.GraphModule, fx.GraphModule]:
    graph = captured("Tiny")
    student = insert_quantizers(fold_batch_norms(graph), Scheme(bits="W4A8"), SPEC)
    calibrate(student, [X], MSE())
    return graph, student


def losses(method: SynQ, teacher: fx.GraphModule, student: fx.GraphModule) -> dict[str, Tensor]:
    dream = Dream(X.clone(), ASKED, teacher(X).detach(), [], [], 0, torch.Generator())
    memory: Any = method.remember(teacher, SPEC, torch.Generator())
    return method.student_losses(student, dream, memory)


def test_labels_of_easy_images_alone() -> None:
    """As the code has it but for a constant: zeroed rows have the loss log K."""
    own, expected = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0))
    expected, classes = 3 * expected, torch.arange(8) % 5
    easy = expected.softmax(1)[torch.arange(8), classes] >= 0.5
    assert 0 < int(easy.sum()) < 8
    found = easy_cross_entropy(own, expected, classes, 0.5)
    zeroed = torch.where(easy[:, None], own, torch.zeros(8, 5))
    everyone = -torch.log_softmax(zeroed, 1)[torch.arange(8), classes].mean()
    constant = float((~easy).sum()) * torch.log(torch.tensor(5.0)) / 8
    torch.testing.assert_close(found, everyone - constant)
    every = easy_cross_entropy(own, expected, classes, 1.0)
    torch.testing.assert_close(every, F.cross_entropy(own, classes))


def test_class_maps_by_hand() -> None:
    """Logits that are sums over positions, weighted by channel: the weights are those over 4."""
    rows = torch.tensor([[1.0, -2.0], [0.5, 4.0]])
    features = torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(1)).requires_grad_()
    logits = features.mean((2, 3)) @ rows.T
    classes = torch.tensor([0, 1, 1])
    found = class_map(logits, features, classes)
    weights = rows[classes] / 4
    expected = torch.einsum("bc,bchw->bhw", weights, features).clamp(min=0)
    torch.testing.assert_close(found, expected)
    (slope,) = torch.autograd.grad(found.sum(), [features])
    torch.testing.assert_close(
        slope, (expected > 0)[:, None] * weights[:, :, None, None].expand_as(slope)
    )
    kept = class_map(logits, features, classes, 1e-10)
    torch.testing.assert_close(
        kept, torch.einsum("bc,bchw->bhw", weights.clamp(min=1e-10), features).clamp(min=0)
    )


def test_stretched_maps_go_from_0_to_1() -> None:
    maps = torch.stack([torch.tensor([[1.0, 3.0], [5.0, 2.0]]), torch.full((2, 2), 7.0)])
    found = stretched(maps, (4, 4))
    assert (found[0].min(), found[0].max()) == (0, 1)
    assert float(found[1].abs().max()) == 0


def test_the_distance_of_class_maps_of_both_networks() -> None:
    teacher, student = pair()
    found = losses(SynQ(map_weight=2.0), teacher, student)
    seen: list[Tensor] = []
    for network, path in ((teacher, "bn2"), (student, "conv2")):
        kept: list[Tensor] = []
        handle = network.get_submodule(path).register_forward_hook(
            lambda _m, _i, output, kept=kept: kept.append(output)
        )
        logits = network(X.clone().requires_grad_())
        handle.remove()
        (slope,) = torch.autograd.grad(logits[torch.arange(6), ASKED].sum(), kept)
        weights = slope.mean((2, 3), keepdim=True)
        seen.append((weights * kept[0]).sum(1).clamp(min=0))
    gap = (seen[0] - seen[1]).pow(2).sum((1, 2)).mean()
    assert gap.item() > 0
    torch.testing.assert_close(found["maps"], 2 * gap, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("maps", ["paper", "official"])
def test_a_student_that_is_its_teacher_has_no_distance(maps: str) -> None:
    teacher = captured("Tiny")
    method = SynQ.model_validate(
        {"maps": maps, "feature_weight": 4000, "perturbation": 0.01, "hardness": 1}
    )
    found = losses(method, teacher, fold_batch_norms(teacher))
    for name in ("maps", "features", "distillation", "features of harder images"):
        assert found[name].item() == pytest.approx(0, abs=1e-4)
    assert found["classes"] > 0


def test_the_paper_s_terms_and_those_its_code_keeps() -> None:
    teacher, student = pair()
    assert set(losses(SynQ(), teacher, student)) == {"distillation", "classes", "maps"}
    official = SynQ(maps="official", feature_weight=4000, perturbation=0.01)
    names = {"distillation", "classes", "features"}
    harder = {f"{name} of harder images" for name in names}
    assert set(losses(official, teacher, student)) == names | harder | {"maps"}
    assert "maps" not in losses(SynQ(map_weight=0.0), teacher, student)


def test_images_are_filtered_behind_the_crop() -> None:
    plain, own = (
        method.seen(X, torch.Generator().manual_seed(3))
        for method in (FixedSet(), SynQ(cutoff=0.2))
    )
    torch.testing.assert_close(own, low_pass(plain, 0.2))
    random = torch.Generator().manual_seed(3)
    torch.testing.assert_close(SynQ(cutoff=0.0).seen(X, random), plain)


def test_a_network_that_tells_no_classes_is_refused() -> None:
    numbers = SPEC.model_copy(update={"outputs": (Output(name="x", shape=(5,), kind="values"),)})
    with pytest.raises(ModelError, match=r"tells none.*use fixed_set"):
        SynQ().remember(captured("Tiny"), numbers, torch.Generator())
