from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from datafree.calibrators.base import calibrate
from datafree.calibrators.minmax import MinMax
from datafree.config import InputSpec, Placement, Scheme
from datafree.errors import ConfigError, ModelError
from datafree.graph import insert
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers, quantizable_layers
from datafree.quant.modules import QUANTIZED, ActivationQuantizer, Quantizer
from datafree.testing.watching import fingerprint
from networks import SPEC, build, captured, images, randomized


def student_of(graph: fx.GraphModule, **scheme: Any) -> fx.GraphModule:
    return insert_quantizers(fold_batch_norms(graph), Scheme(**scheme))


def student(name: str, **scheme: Any) -> fx.GraphModule:
    return student_of(captured(name), **scheme)


def quantizers(graph: fx.GraphModule) -> dict[str, ActivationQuantizer]:
    """By the node they read, in execution order."""
    found: dict[str, ActivationQuantizer] = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            module = graph.get_submodule(str(node.target))
            if isinstance(module, ActivationQuantizer):
                found[node.args[0].name] = module
    return found


def weight_bits(graph: fx.GraphModule) -> list[int]:
    layers = [graph.get_submodule(name) for name in quantizable_layers(graph)]
    return [layer.weight_quantizer.grid.bits for layer in layers]  # pyright: ignore


def readers(graph: fx.GraphModule, name: str) -> list[str]:
    (node,) = [n for n in graph.graph.nodes if n.name == name]
    return [user.name for user in node.users]


def test_layers_in_execution_order() -> None:
    assert quantizable_layers(captured("Tiny")) == ["conv1", "conv2", "linear"]
    assert quantizable_layers(captured("NoNorm")) == ["conv", "linear"]
    assert len(quantizable_layers(captured("Tied"))) == 4


def test_every_input_of_a_layer_is_quantized() -> None:
    graph = student("Tiny", bits="W4A4")
    found = quantizers(graph)
    assert list(found) == ["x", "relu1", "mean"]
    assert [q.grid.bits for q in found.values()] == [8, 4, 4]
    for node in graph.graph.nodes:
        if node.op == "call_module" and isinstance(
            graph.get_submodule(str(node.target)), QUANTIZED
        ):
            (source,) = node.all_input_nodes
            assert isinstance(graph.get_submodule(str(source.target)), ActivationQuantizer)


def test_outputs_of_activations_are_quantized() -> None:
    graph = student("Tiny", bits="W4A4", placement="after_activation")
    found = quantizers(graph)
    assert list(found) == ["relu1", "relu2"]
    assert [q.grid.bits for q in found.values()] == [4, 4]
    assert readers(graph, "x") == ["conv1"]


def test_after_activation_stands_behind_a_norm_that_stays() -> None:
    graph = student("NormAfterActivation", placement="after_activation", symmetric_activations=True)
    found = quantizers(graph)
    # bn2 folds forward into conv3, bn4 into fc2; bn1 and bn3 stay.
    assert list(found) == ["bn1", "relu_1", "bn3", "relu_3"]
    assert [q.grid.signed for q in found.values()] == [True, False, True, False]


def test_other_readers_of_an_input_stay_in_float_for_layer_inputs() -> None:
    """In a residual block the addition reads the float tensor; only layers read integers."""
    graph = student("InPlaceResidual")
    assert sorted(readers(graph, "relu")) == ["add_", "relu_quantizer"]
    after = student("InPlaceResidual", placement="after_activation")
    assert readers(after, "relu") == ["relu_quantizer"]
    assert sorted(readers(after, "relu_quantizer")) == ["add_", "conv2"]


class Branches(nn.Module):
    """One tensor read by two convolutions and an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.right, self.linear = nn.Conv2d(4, 4, 1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.linear((self.left(x) + torch.sigmoid(self.right(x)) + x).mean((2, 3)))


@pytest.mark.parametrize("placement", ["every_input", "after_activation"])
def test_shared_readers_get_one_quantizer(placement: Placement) -> None:
    graph = student_of(capture(Branches().eval(), SPEC), placement=placement)
    assert [name for name in quantizers(graph) if name.startswith("relu")] == ["relu"]
    expected = ["left", "right"] if placement == "every_input" else ["add_1", "left", "right"]
    assert sorted(readers(graph, "relu_quantizer")) == expected


@pytest.mark.parametrize("placement", ["every_input", "after_activation"])
def test_float_activations_mean_no_quantizers(placement: Placement) -> None:
    graph = student("Tiny", bits="W2A32", placement=placement)
    assert quantizers(graph) == {}
    assert weight_bits(graph) == [2, 2, 2]


@pytest.mark.parametrize(
    ("name", "policy", "expected"),
    [
        ("Tiny", "all", [3, 3, 3]),
        ("Tiny", "first_last_8", [8, 3, 8]),
        ("Grouped", "first_last_8", [8, 3, 3, 3, 8]),
    ],
)
def test_weight_bits_follow_the_policy(name: str, policy: str, expected: list[int]) -> None:
    assert weight_bits(student(name, bits="W3A3", policy=policy)) == expected


@pytest.mark.parametrize(
    ("policy", "layer_bits", "expected"),
    [
        ("all", {"depthwise": 2}, [4, 2, 4, 4, 4]),
        ("all", {"stem": 5, "linear": 6}, [5, 4, 4, 4, 6]),
        ("first_last_8", {"grouped": 3}, [8, 4, 4, 3, 8]),
        ("brecq", {"stem": 8, "pointwise": 8}, [8, 4, 8, 4, 8]),
    ],
)
def test_single_layers_get_their_own_bits(
    policy: str, layer_bits: dict[str, int], expected: list[int]
) -> None:
    graph = student("Grouped", bits="W4A8", policy=policy, layer_bits=layer_bits)
    assert weight_bits(graph) == expected
    scheme = Scheme(bits="W4A8", policy=policy, layer_bits=layer_bits)  # pyright: ignore
    assert list(insert.weight_bits(captured("Grouped"), scheme).values()) == expected


@pytest.mark.parametrize(
    ("policy", "layer_bits", "message"),
    [
        ("all", {"depthwyse": 2}, "unknown layer in layer_bits 'depthwyse': did you mean depth"),
        ("all", {"x9": 2}, "choose from depthwise, grouped, linear, pointwise, stem"),
        ("first_last_8", {"stem": 4}, "first_last_8 keeps stem at 8 bits and layer_bits asks .* 4"),
        ("brecq", {"linear": 2}, "brecq keeps linear at 8 bits"),
    ],
)
def test_layer_bits_that_cannot_be(policy: str, layer_bits: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        student("Grouped", policy=policy, layer_bits=layer_bits)


def test_the_policy_leaves_activations_alone() -> None:
    found = quantizers(student("Tiny", bits="W3A3", policy="first_last_8"))
    assert [q.grid.bits for q in found.values()] == [8, 3, 3]


def test_black_and_white_of_the_channels_that_go_furthest() -> None:
    """Channel by channel -2 … 3, -1 … 1 and 0 … 4, by hand."""
    spec = InputSpec(shape=(3, 8, 8), mean=(0.4, 0.5, 0), std=(0.2, 0.5, 0.25), classes=5)
    graph = insert_quantizers(fold_batch_norms(captured("Tiny")), Scheme(bits="W4A8"), spec)
    assert next(iter(quantizers(graph).values())).covers == pytest.approx((-2, 4))


@pytest.mark.parametrize("name", ["Tiny", "InPlaceResidual"])
def test_what_the_input_is_known_to_take(name: str) -> None:
    """SPEC: black at -2 in every channel, white at 3, 2 and 4/3. Calibrated on gray alone."""
    graph = insert_quantizers(fold_batch_norms(captured(name)), Scheme(bits="W4A8"), SPEC)
    found = list(quantizers(graph).values())
    assert found[0].covers == pytest.approx((-2, 3))
    assert all(quantizer.covers is None for quantizer in found[1:])
    calibrate(graph, [images(4) / 100], MinMax())
    ends = found[0](torch.tensor([-9.0, 9.0]))
    torch.testing.assert_close(ends, torch.tensor([-2.0, 3.0]), rtol=0, atol=0.02)
    assert all(quantizer.covers is None for quantizer in quantizers(student(name)).values())


class Padded(nn.Module):
    """The network's input is padded before the first layer sees it, as TensorFlow does."""

    def __init__(self) -> None:
        super().__init__()
        self.pad, self.conv, self.linear = (
            nn.ZeroPad2d((0, 1, 0, 1)),
            nn.Conv2d(3, 4, 3, 2),
            nn.Linear(4, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(self.pad(x)))
        return self.linear(self.pad(x).mean((2, 3)))


def test_a_padded_input_is_still_the_input() -> None:
    graph = student_of(capture(Padded().eval(), SPEC), bits="W8A4")
    assert [q.grid.bits for q in quantizers(graph).values()] == [8, 4]


def test_grids_follow_the_scheme() -> None:
    graph = student("Tiny", symmetric_weights=True, weight_granularity="tensor", ste="full")
    for name in quantizable_layers(graph):
        quantizer: Quantizer = graph.get_submodule(name).weight_quantizer  # pyright: ignore
        assert quantizer.grid.symmetric
        assert quantizer.scale.shape == ()
        assert quantizer.ste == "full"
    assert not any(q.grid.symmetric for q in quantizers(graph).values())
    assert {q.ste for q in quantizers(graph).values()} == {"full"}
    channels = student("Tiny").get_submodule("conv2.weight_quantizer")
    assert channels.scale.shape == (6, 1, 1, 1)


class Signs(nn.Module):
    """A linear layer behind `call`, applied to a convolution and to its ReLU."""

    def __init__(self, call: Any) -> None:
        super().__init__()
        self.call, self.conv, self.linear = call, nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.linear(self.call(x, torch.relu(x)))


POSITIONS: list[tuple[Callable[[Tensor, Tensor], Tensor], bool]] = [
    (lambda x, r: r.mean((2, 3)), False),
    (lambda x, r: x.mean((2, 3)), True),
    (lambda x, r: F.relu6(x).mean((2, 3)), False),
    (lambda x, r: F.hardtanh(x, 0, 4).mean((2, 3)), False),
    (lambda x, r: F.hardtanh(x, -1, 1).mean((2, 3)), True),
    (lambda x, r: torch.sigmoid(x).mean((2, 3)), False),
    (lambda x, r: F.leaky_relu(x).mean((2, 3)), True),
    (lambda x, r: F.silu(x).mean((2, 3)), True),
    (lambda x, r: F.adaptive_avg_pool2d(r, 1).flatten(1), False),
    (lambda x, r: F.adaptive_avg_pool2d(r, 1).view(r.shape[0], -1), False),
    (lambda x, r: F.max_pool2d(r, 6).reshape(-1, 4), False),
    (lambda x, r: (r + r).mean((2, 3)), False),
    (lambda x, r: (r + x).mean((2, 3)), True),
    (lambda x, r: (r - x).mean((2, 3)), True),
    (lambda x, r: (r + 1).mean((2, 3)), False),
    (lambda x, r: (r + -1).mean((2, 3)), True),
    (lambda x, r: torch.add(r, r, alpha=-2).mean((2, 3)), True),
    (lambda x, r: F.pad(r, (1, 1), value=-1.0).mean((2, 3)), True),
    (lambda x, r: F.pad(r, (1, 1)).mean((2, 3)), False),
    (lambda x, r: torch.cat([r, r], 2).mean((2, 3)), False),
    (lambda x, r: torch.cat([r, x], 2).mean((2, 3)), True),
    (lambda x, r: (-r).mean((2, 3)), True),
]


@pytest.mark.parametrize(("call", "signed"), POSITIONS)
def test_signedness_follows_the_position(call: Any, signed: bool) -> None:
    graph = student_of(capture(Signs(call).eval(), SPEC), symmetric_activations=True, bits="W8A4")
    entering, last = quantizers(graph).values()
    assert (entering.grid.qmin, entering.grid.qmax) == (-128, 127)
    assert last.grid.signed is signed
    assert (last.grid.qmin, last.grid.qmax) == ((-8, 7) if signed else (0, 15))


@pytest.mark.parametrize(
    "name", ["Tiny", "Grouped", "InPlaceResidual", "NormAfterActivation", "Dense"]
)
@pytest.mark.parametrize("placement", ["every_input", "after_activation"])
def test_eight_bits_are_close_and_two_are_not(name: str, placement: Placement) -> None:
    folded = fold_batch_norms(captured(name))
    before, errors = fingerprint(folded), dict[int, float]()
    for bits in (8, 2):
        scheme = Scheme(bits=f"W{bits}A{bits}", placement=placement)
        graph = insert_quantizers(folded, scheme)
        calibrate(graph, [images(16)], MinMax())
        expected = folded(images(16))
        errors[bits] = ((graph(images(16)) - expected).std() / expected.std()).item()
    assert errors[8] < 0.1
    assert errors[2] > 4 * errors[8]
    assert fingerprint(folded) == before


def test_with_every_quantizer_off_the_student_is_the_folded_network() -> None:
    folded = fold_batch_norms(captured("Grouped"))
    graph = insert_quantizers(folded, Scheme(bits="W2A2"))
    for module in graph.modules():
        if isinstance(module, Quantizer):
            module.enabled = False
    assert torch.equal(graph(images(3)), folded(images(3)))


def test_a_network_without_layers_is_refused() -> None:
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    with pytest.raises(ModelError, match="no convolution or linear layer"):
        student_of(capture(Nothing(), SPEC))


def test_a_folded_network_is_not_touched_by_its_student() -> None:
    model = randomized(build("Tiny"), images(8))
    folded = fold_batch_norms(capture(model, SPEC))
    graph = insert_quantizers(folded, Scheme(bits="W4A8"))
    graph.get_parameter("conv1.weight").data.zero_()
    assert folded.get_parameter("conv1.weight").abs().sum() > 0
    assert not any(isinstance(m, Quantizer) for m in folded.modules())


def test_policy_brecq_in_every_input() -> None:
    """Ends have 8-bit weights, second and last layer 8-bit inputs, the image stays float."""
    graph = student("Tied", bits="W3A2", policy="brecq")
    bits = weight_bits(graph)
    assert bits[0] == bits[-1] == 8
    assert set(bits[1:-1]) == {3}
    found = {name: quantizer.grid.bits for name, quantizer in quantizers(graph).items()}
    layers = [n for n in graph.graph.nodes if str(n.target) in quantizable_layers(graph)]
    second, last = (
        layer.all_input_nodes[0].all_input_nodes[0] for layer in (layers[1], layers[-1])
    )
    assert found.pop(second.name) == found.pop(last.name) == 8
    assert set(found.values()) <= {2}
    assert "x" not in found


@pytest.mark.parametrize("name", ["Tied", "Tiny"])
def test_policy_qdrop_gives_the_second_layer_few_bits(name: str) -> None:
    """QDrop: 8 bits for the ends' weights and the last input alone; the image stays float."""
    graph = student(name, bits="W3A2", policy="qdrop")
    assert weight_bits(graph) == weight_bits(student(name, bits="W3A2", policy="brecq"))
    found = {name: quantizer.grid.bits for name, quantizer in quantizers(graph).items()}
    layers = [n for n in graph.graph.nodes if str(n.target) in quantizable_layers(graph)]
    assert found.pop(layers[-1].all_input_nodes[0].all_input_nodes[0].name) == 8
    assert found.pop(layers[1].all_input_nodes[0].all_input_nodes[0].name) == 2
    assert set(found.values()) <= {2}
    assert "x" not in found


def test_policy_brecq_after_activations() -> None:
    """The last layer's input is the activation before the pooling."""
    graph = student("Tiny", bits="W3A2", policy="brecq", placement="after_activation")
    assert {n: q.grid.bits for n, q in quantizers(graph).items()} == {"relu1": 8, "relu2": 8}


def test_weight_ranges_of_least_error() -> None:
    graph, plain = student("Tiny", bits="W2A8", weight_range="mse"), student("Tiny", bits="W2A8")
    for name in quantizable_layers(plain):
        layer, other = (g.get_submodule(name) for g in (graph, plain))
        assert isinstance(layer, QUANTIZED)
        assert isinstance(other, QUANTIZED)
        errors = [
            (part.weight_quantizer(part.weight) - part.weight).abs().pow(2.4).sum()
            for part in (layer, other)
        ]
        assert errors[0] < errors[1]


def test_a_student_shares_weights_only_where_it_is_told() -> None:
    folded = fold_batch_norms(captured("Tiny"))
    own = {t.data_ptr() for t in folded.parameters()}
    made = insert_quantizers(folded, Scheme(bits="W4A4"), share=True)
    apart = insert_quantizers(folded, Scheme(bits="W4A4"))
    assert {t.data_ptr() for t in made.parameters()} == own
    assert not {t.data_ptr() for t in apart.parameters()} & own
    batches = [images(4)]
    for student in (made, apart):
        calibrate(student, batches, MinMax())
    assert torch.equal(made(batches[0]), apart(batches[0]))
