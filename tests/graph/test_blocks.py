from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from datafree.config import InputSpec, Scheme
from datafree.errors import ModelError
from datafree.graph.blocks import (
    Block,
    find_blocks,
    layer_blocks,
    output_name,
    reaches,
    subgraph,
)
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers, quantizable_layers
from networks import captured, images

NAMES = [
    "Tiny", "Functional", "InPlaceResidual", "Tied", "SharedNorm", "Dropouts", "SamePadding",
    "Dense", "Grouped", "CustomModules", "NormAfterActivation", "NoNorm", "Branched",
]  # fmt: skip


class Inception(nn.Module):
    """A stem, two branches that are concatenated, a gate, a pooled classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.left, self.right = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 5, 3, padding=1)
        self.squeeze = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(torch.cat((self.left(x), self.right(x)), 1))
        x = x * torch.sigmoid(self.squeeze(x.mean((2, 3), keepdim=True)))
        return self.head(F.avg_pool2d(x, 8).flatten(1))


class Pools(nn.Module):
    """Pooling at the front and at the very end, after the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(F.avg_pool2d(x, 2)))
        return self.last(F.max_pool2d(x, 2)).mean((2, 3))


def graph_of(model: nn.Module) -> fx.GraphModule:
    torch.manual_seed(0)
    spec = InputSpec(shape=(3, 8, 8), mean=(0, 0, 0), std=(1, 1, 1), classes=5)
    return capture(model.eval(), spec)


@pytest.mark.parametrize("name", NAMES)
def test_blocks_hold_all_layers_and_compose_to_the_network(name: str) -> None:
    folded = fold_batch_norms(captured(name))
    blocks = find_blocks(folded)
    assert set(quantizable_layers(folded)) == {path for b in blocks for path in b.layers}
    assert all(block.layers for block in blocks)
    x = images(3, 1)
    expected = folded(x)
    for before, block in zip([None, *blocks], blocks, strict=False):
        assert before is None or block.start == before.end
        x = subgraph(folded, block.start, block.end)(x)
    assert torch.equal(x, expected)
    assert blocks[-1].end == output_name(folded)


def test_a_residual_block_ends_after_its_activation() -> None:
    graph = fold_batch_norms(captured("InPlaceResidual"))
    for block in find_blocks(graph):
        (node,) = [n for n in graph.graph.nodes if n.name == block.end]
        assert node.target != torch.ops.aten.add.Tensor


def test_branches_and_gates_stay_in_one_block() -> None:
    graph = graph_of(Inception())
    assert [block.layers for block in find_blocks(graph)] == [
        ("stem",), ("left", "right"), ("squeeze",), ("head",),
    ]  # fmt: skip


def test_pooling_belongs_to_the_block_after_it() -> None:
    graph = graph_of(Pools())
    first, last = find_blocks(graph)
    assert first.start == "x"
    value = images(2, 3)
    middle = subgraph(graph, first.start, first.end)(value)
    assert middle.shape == (2, 4, 4, 4)
    assert (middle >= 0).all()
    assert subgraph(graph, last.start, last.end)(middle).shape == (2, 5)


@pytest.mark.parametrize("name", NAMES)
def test_layers_of_a_block_by_themselves(name: str) -> None:
    """The function of a layer's block is the layer and its activation, and nothing else."""
    folded = fold_batch_norms(captured(name))
    for block in find_blocks(folded):
        units = layer_blocks(folded, block)
        assert [path for unit in units for path in unit.layers] == list(block.layers)
        for unit in units:
            part = subgraph(folded, unit.start, unit.end)
            calls = [n for n in part.graph.nodes if n.op == "call_module"]
            assert str(calls[0].target) == unit.layers[0]


def test_a_subgraph_of_the_student_takes_in_the_quantizer_of_its_input() -> None:
    folded = fold_batch_norms(captured("Tiny"))
    student = insert_quantizers(folded, Scheme())
    for block in find_blocks(folded):
        part = subgraph(student, block.start, block.end)
        assert any("quantizer" in str(node.target) for node in part.graph.nodes)
        layer = student.get_submodule(block.layers[0])
        assert part.get_submodule(block.layers[0]) is layer


def test_what_is_computed_from_what() -> None:
    """Two branches from one input: neither is computed from the other, their sum from both."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    left, right = graph.call_function(torch.relu, (x,)), graph.call_function(torch.tanh, (x,))
    both = graph.call_function(torch.add, (left, right))
    graph.output(both)
    module = fx.GraphModule(nn.Module(), graph)
    assert reaches(module, x.name, both.name)
    assert reaches(module, left.name, both.name)
    assert reaches(module, left.name, left.name)
    assert not reaches(module, left.name, right.name)
    assert not reaches(module, both.name, left.name)


def test_what_cannot_be_cut_out_is_refused() -> None:
    graph = graph_of(Inception())
    with pytest.raises(ModelError, match="needs x"):
        subgraph(graph, "left", output_name(graph))
    with pytest.raises(ModelError, match="no node nowhere"):
        subgraph(graph, "nowhere", output_name(graph))
    same = subgraph(graph, "left", "left")
    value = images(1, 0)
    assert torch.equal(same(value), value)


def test_name_of_a_block() -> None:
    assert Block("a", "b", ("one",)).name == "one"
    assert Block("a", "b", ("one", "two", "three")).name == "one … three"


def test_no_layer_at_all() -> None:
    with pytest.raises(ModelError, match="no convolution or linear layer"):
        find_blocks(graph_of(nn.Sequential(nn.Flatten(), nn.ReLU())))
