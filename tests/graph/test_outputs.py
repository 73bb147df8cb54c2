from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_structure

import datafree
from datafree.errors import CaptureError, ModelError
from datafree.export.onnx import Onnx
from datafree.graph.capture import capture
from datafree.graph.outputs import heads_of, separate, structured, together
from datafree.models import from_module
from networks import SPEC, images, randomized

SHAPE = SPEC.shape


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.maps, self.linear = nn.Conv2d(8, 5, 1), nn.Linear(8, 4)
        self.register_buffer("anchors", torch.arange(6.0).view(3, 2))

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))


class Nested(Base):
    """All that a network may return: nothing, maps, a tuple, a number, the same for all images."""

    def forward(self, x: Tensor) -> Any:
        y = self.features(x)
        pair = (self.linear(y.mean((2, 3))), y.amax((2, 3)))
        return {"none": None, "out": self.maps(y), "pair": pair, "n": 3, "anchors": self.anchors}


@dataclass
class Found:
    boxes: Tensor
    scores: Tensor


class AsDataclass(Base):
    def forward(self, x: Tensor) -> Found:
        y = self.features(x)
        return Found(self.maps(y).flatten(2), self.linear(y.mean((2, 3))))


class Twice(Base):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.maps(self.features(x))
        return y, y


class Features(Base):
    def __init__(self) -> None:
        super().__init__()
        self.neck = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.neck(self.features(x).mean((2, 3)))


NETWORKS = [Nested, AsDataclass, Twice, Features]


def same(one: Any, other: Any) -> bool:
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    return tree_structure(one) == tree_structure(other) and all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs
    )


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_captured_network_returns_what_the_network_returns(kind: type[nn.Module]) -> None:
    model = randomized(kind(), images(32)).eval()
    teacher = from_module(model, input_shape=SHAPE)
    graph = capture(teacher.model, teacher.spec)
    x = images(3)
    with torch.no_grad():
        expected, whole = model(x), graph(x)
        shown = structured(graph)
        assert same(shown(x), expected)
        assert same(copy.deepcopy(shown)(x), expected)
        assert torch.equal(together(shown)(x), whole) and together(graph) is graph
        for form in (graph, shown):
            tensors = separate(form)(x)
            assert torch.equal(torch.cat([t.flatten(1) for t in tensors], 1), whole)
    assert heads_of(graph) == teacher.spec.outputs
    assert [tuple(t.shape[1:]) for t in tensors] == [head.shape for head in teacher.spec.heads]


def test_names_tell_where_a_tensor_stands() -> None:
    spec = from_module(randomized(Nested(), images(32)).eval(), input_shape=SHAPE).spec
    told = {head.name: head.kind for head in spec.outputs}
    assert told == {"out": "dense_classes", "pair.0": "classes", "pair.1": "classes"}
    assert spec.task == "dense classes" and spec.classes == 5 and not spec.labelled


def test_what_a_network_does_is_guessed_or_told() -> None:
    model = randomized(Features(), images(32)).eval()
    assert from_module(model, input_shape=SHAPE).spec.task == "regression or embedding"
    told = from_module(model, input_shape=SHAPE, task="classes").spec
    assert told.task == "classes" and told.classes == 8 and told.outputs == ()
    assert (
        from_module(randomized(Twice(), images(32)).eval(), input_shape=SHAPE).spec.task
        == "detection heads"
    )


class Rows(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.maps(self.features(x)).permute(0, 2, 3, 1).reshape(-1, 5)


class Divided(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(self.features(x).mean((2, 3)))
        return (y - y) / (y - y)


def test_rows_that_are_no_images_are_refused() -> None:
    with pytest.raises(ModelError, match="images along its first dimension"):
        from_module(randomized(Rows(), images(32)).eval(), input_shape=SHAPE)


def test_nan_have_their_own_message() -> None:
    teacher = from_module(randomized(Divided(), images(32)).eval(), input_shape=SHAPE)
    with pytest.raises(CaptureError, match="returns NaN"):
        capture(teacher.model, teacher.spec)


@pytest.mark.integration
@pytest.mark.parametrize("bits", ["W8A8", "W4A4"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_files_have_a_tensor_for_every_output(
    kind: type[nn.Module], bits: str, tmp_path: Path
) -> None:
    model = randomized(kind(), images(32)).eval()
    made = datafree.quantize(
        model, input_shape=SHAPE, bits=bits, images=8, method="noise", holdout=8,
        latency=False, output=tmp_path / "run",
    )  # fmt: skip
    path, x = tmp_path / "run" / "student.onnx", images(3)
    heads = made.spec.heads
    file = onnx.load(path)
    assert [value.name for value in file.graph.output] == [head.name for head in heads]
    found = Onnx().run(path)(x)
    with torch.no_grad():
        returned = made.student(x)
        assert tree_structure(returned) == tree_structure(model(x))
        computed = tree_leaves(made.integer_model(x))
    own = [leaf for leaf in computed if isinstance(leaf, Tensor) and len(leaf) == 3 and leaf.ndim]
    own = [leaf for leaf in own if not torch.equal(leaf, model.anchors)]  # pyright: ignore
    assert torch.allclose(found, torch.cat([leaf.flatten(1) for leaf in own], 1), atol=1e-5)
    program = torch.export.load(tmp_path / "run" / "student.pt2").module()
    assert len(tree_leaves(program(x))) == len(heads)
    assert ("agreement" in made.metrics["held_out"]) == any(h.kind != "values" for h in heads)
