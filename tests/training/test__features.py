"""Places that features are taken at, and what both networks show there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from datafree.calibrators.base import calibrate
from datafree.calibrators.mse import MSE
from datafree.config import Scheme
from datafree.errors import ModelError
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.testing.networks import Attending, randomized
from datafree.training import Dream
from datafree.training._features import (
    Place,
    Watched,
    attention_distance,
    block_places,
    last_place,
    observed,
)
from networks import SPEC, captured, images


class Blocks(nn.Module):
    """A stem, a block that adds its input, and one whose shortcut is a convolution defined last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.a1, self.na1 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.a2, self.na2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.b1, self.nb1 = nn.Conv2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6)
        self.b2, self.nb2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.cut, self.ncut = nn.Conv2d(4, 6, 1, 2), nn.BatchNorm2d(6)
        self.linear = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.na2(self.a2(torch.relu(self.na1(self.a1(x))))) + x)
        own = self.nb2(self.b2(torch.relu(self.nb1(self.b1(x)))))
        return self.linear(torch.relu(own + self.ncut(self.cut(x))).mean((2, 3)))


def blocks() -> nn.Module:
    torch.manual_seed(0)
    return randomized(Blocks(), images(32)).eval()


def dream(x: Tensor) -> Dream:
    return Dream(x, None, torch.zeros(len(x), 5), [], [], 0, torch.Generator())


def test_the_last_convolution_of_every_block_before_the_sum() -> None:
    graph = capture(blocks(), SPEC)
    assert block_places(graph) == (Place("a2", "na2"), Place("b2", "nb2"))
    assert last_place(graph) == Place("cut", "ncut")


def test_without_residual_blocks_all_convolutions_have_places() -> None:
    places = block_places(captured("Grouped"))
    assert [place.layer for place in places] == ["stem", "depthwise", "pointwise", "grouped"]
    assert [place.norm for place in places] == ["bn0", "bn1", "bn2", "bn3"]
    assert block_places(captured("NoNorm")) == (Place("conv", None),)


def test_layers_that_are_called_twice_are_no_places() -> None:
    """Whose map would it be?"""
    assert last_place(captured("InPlaceResidual")) == Place("conv1", "bn1")


def test_a_transformer_has_those_of_its_patches() -> None:
    """Its blocks end in linear layers, which make tokens."""
    assert block_places(capture(Attending().eval(), SPEC)) == (Place("patches", None),)


def test_a_network_without_maps_is_refused() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3 * 8 * 8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.flatten(1))

    graph = capture(Flat().eval(), SPEC)
    for places in (block_places, last_place):
        with pytest.raises(ModelError, match=r"no convolution .* use fixed_set"):
            places(graph)


def test_maps_of_a_folded_student_are_those_of_its_teacher_but_for_the_grids() -> None:
    """At 8 bits nearly equal, behind the norms that the student no longer has."""
    model = blocks()
    graph, x = capture(model, SPEC), images(6, 1)
    student = insert_quantizers(fold_batch_norms(graph), Scheme(bits="W8A8"), SPEC)
    calibrate(student, [x], MSE())
    maps = observed(Watched(graph, block_places(graph), last_place(graph)), student, x, dream(x))
    own = dict(model.named_modules())
    h = torch.relu(own["norm"](own["stem"](x)))
    expected = own["na2"](own["a2"](torch.relu(own["na1"](own["a1"](h)))))
    torch.testing.assert_close(maps.features[0][0], expected)
    assert maps.last is not None
    for teacher, found in (*maps.features, maps.last):
        assert (teacher - found).abs().max() < 0.05 * teacher.abs().max()
    torch.testing.assert_close(maps.dream.logits, model(x))
    torch.testing.assert_close(maps.logits, student(x))
    assert not any(m._forward_hooks for n in (graph, student) for m in n.modules())


def test_attentions_by_hand() -> None:
    """Means of squares (4, 3) and (1, 0), of length 5 and 1."""
    one = torch.tensor([[[[2.0, 2.0]], [[3**0.5, -(3**0.5)]]]])
    other = torch.tensor([[[[1.0, 1.0]], [[0.0, 0.0]]]])
    expected = ((0.8 - 1) ** 2 + 0.6**2) / 2
    assert attention_distance(one, other).item() == pytest.approx(expected)
    assert attention_distance(one, 7 * one).item() == pytest.approx(0, abs=1e-12)
