"""All inputs in one tensor inside, by themselves outside."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datafree.config import InputSpec
from datafree.config.inputs import Input
from datafree.errors import CaptureError
from datafree.graph.capture import capture
from datafree.graph.image import image_bounds
from datafree.graph.inputs import apart, inputs_of, is_input_part, packed_again
from datafree.graph.outputs import separate, structured, together
from datafree.losses import pack, unpack
from datafree.models import from_module


class Pair(nn.Module):
    """An image and a vector, and two things returned."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.side = nn.Linear(70, 6)

    def forward(self, image: Tensor, vector: Tensor) -> dict[str, Tensor]:
        both = torch.relu(self.conv(image)).mean((2, 3)) + self.side(vector)
        return {"logits": both, "feature": both.tanh()}


SHAPES = ((3, 8, 8), (70,))


def inputs() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    return torch.randn(5, 3, 8, 8, generator=random), torch.randn(5, 70, generator=random)


def captured(model: nn.Module, shapes: Any) -> tuple[torch.fx.GraphModule, InputSpec]:
    teacher = from_module(model, input_shape=shapes)
    return capture(teacher.model, teacher.spec), teacher.spec


def test_what_is_packed_comes_out_again_bit_for_bit() -> None:
    _, spec = captured(Pair(), SHAPES)
    packed = pack(inputs(), spec.inputs)
    assert packed.shape == (5, 5, 8, 8)  # 70 numbers take two channels of 64
    assert all(map(torch.equal, unpack(packed, spec.inputs), inputs()))


def test_the_graph_computes_what_the_network_does_in_all_its_forms() -> None:
    network = Pair().eval().requires_grad_(False)
    graph, spec = captured(network, SHAPES)
    wanted = network(*inputs())
    packed = pack(inputs(), spec.inputs)
    assert torch.equal(graph(packed), torch.cat([*wanted.values()], 1))
    own = structured(graph)
    returned = own(image=inputs()[0], vector=inputs()[1])
    assert returned.keys() == wanted.keys()
    assert all(torch.equal(returned[key], wanted[key]) for key in wanted)
    assert all(map(torch.equal, separate(graph)(*inputs()), wanted.values()))
    assert torch.equal(together(own)(packed), graph(packed))
    assert torch.equal(together(separate(graph))(packed), graph(packed))
    assert [one.name for one in inputs_of(copy.deepcopy(own))] == ["image", "vector"]


def test_parts_have_the_names_of_inputs_and_apart_is_undone() -> None:
    graph, spec = captured(Pair(), SHAPES)
    parts = [node for node in graph.graph.nodes if is_input_part(node)]
    assert [node.name for node in parts] == ["image", "vector"]
    alone = apart(graph)
    placeholders = alone.graph.find_nodes(op="placeholder")
    assert [str(node.target) for node in placeholders] == ["image", "vector"]
    packed = pack(inputs(), spec.inputs)
    assert torch.equal(packed_again(alone)(packed), graph(packed))


def test_a_plain_image_has_no_part_and_is_its_own_outside() -> None:
    graph, spec = captured(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), (3, 8, 8))
    assert spec.inputs == () and not any(map(is_input_part, graph.graph.nodes))
    assert apart(graph) is graph and packed_again(graph) is graph


def test_an_input_that_is_not_read_is_still_taken() -> None:
    class Deaf(Pair):
        def forward(self, image: Tensor, vector: Tensor) -> dict[str, Tensor]:
            return super().forward(image, image.new_zeros(image.size(0), 70))

    graph, _ = captured(Deaf(), SHAPES)
    first, second = structured(graph)(*inputs()), structured(graph)(inputs()[0], inputs()[1] + 1)
    assert torch.equal(first["logits"], second["logits"])


def test_an_image_has_black_and_white_and_values_have_no_ends() -> None:
    graph, _ = captured(Pair(), SHAPES)
    bounds = {node.name: ends for node, ends in image_bounds(graph, None).items()}
    assert bounds["image"][0].tolist() == [0.0] * 3 and bounds["image"][1].tolist() == [1.0] * 3
    assert bounds["vector"][1].isinf().all() and "images" not in bounds


def test_a_graph_of_another_number_of_inputs_is_refused() -> None:
    one = Input(name="image", shape=(3, 8, 8), kind="image", mean=(0.0,) * 3, std=(1.0,) * 3)
    spec = InputSpec(shape=(3, 8, 8), mean=one.mean, std=one.std, classes=6)
    with pytest.raises(CaptureError, match="takes several inputs: give input_shape of each"):
        capture(Pair(), spec)
