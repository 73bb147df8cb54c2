from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from datafree.calibrators.base import calibrate
from datafree.calibrators.minmax import MinMax
from datafree.config import Scheme
from datafree.graph.capture import capture
from datafree.graph.fold import fold_batch_norms, fold_into_grids
from datafree.graph.insert import insert_quantizers
from datafree.graph.taps import batch_norms
from datafree.quant.modules import QUANTIZED
from datafree.testing.watching import fingerprint
from networks import NETWORKS, SPEC, build, captured, images, randomized


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / (expected.max() - expected.min())).item()


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("Tiny", []),
        ("Functional", []),
        ("InPlaceResidual", ["bn2"]),  # its convolution is called twice
        ("Tied", []),
        ("SharedNorm", []),  # each of two layers takes it over
        ("Dropouts", []),
        ("SamePadding", []),
        ("Dense", []),
        ("Grouped", []),
        ("CustomModules", ["features.1"]),  # behind an activation, read by a sigmoid
        ("NormAfterActivation", ["bn1", "bn3"]),  # before padding; before a flatten
        ("NoNorm", []),
        ("Branched", []),
    ],
)
def test_what_folds_and_what_stays(name: str, left: list[str]) -> None:
    graph = captured(name)
    before = fingerprint(graph)
    folded = fold_batch_norms(graph)
    assert list(batch_norms(folded)) == left
    assert relative(folded(images(5)), graph(images(5))) < 1e-5
    assert fingerprint(graph) == before


@pytest.mark.parametrize("name", list(NETWORKS))
def test_nothing_but_rounding_separates_the_two(name: str) -> None:
    graph = captured(name).double()
    x = images(5).double()
    assert relative(fold_batch_norms(graph)(x), graph(x)) < 1e-12


def test_every_network_is_in_the_table() -> None:
    marks = test_what_folds_and_what_stays.pytestmark  # pyright: ignore
    assert {row[0] for row in marks[0].args[1]} == set(NETWORKS)


def test_only_parameters_of_folded_layers_change() -> None:
    folded, graph = (
        fold_batch_norms(captured("NormAfterActivation")),
        captured("NormAfterActivation"),
    )
    state = folded.state_dict()
    same = {k for k, v in graph.state_dict().items() if k in state and torch.equal(v, state[k])}
    assert "conv1.weight" in same
    assert "bn1.weight" in same
    assert "conv3.weight" not in same
    assert not any(p.requires_grad for p in folded.parameters())


def test_backward_by_hand() -> None:
    """B.4.1, one channel at a time."""
    graph = captured("Tiny")
    folded = fold_batch_norms(graph)
    conv, norm = graph.get_submodule("conv2"), graph.get_submodule("bn2")
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert conv.bias is not None
    for c in range(6):
        root = (norm.running_var[c].item() + 1e-3) ** 0.5
        gain = norm.weight[c].item() / root
        bias = (conv.bias[c].item() - norm.running_mean[c].item()) * gain + norm.bias[c].item()
        actual = folded.get_parameter("conv2.weight")[c]
        torch.testing.assert_close(actual, conv.weight[c] * gain, rtol=1e-5, atol=1e-7)
        assert folded.get_parameter("conv2.bias")[c].item() == pytest.approx(
            bias, rel=1e-4, abs=1e-6
        )


class Forward(nn.Module):
    """ReLU, batch norm, then a layer."""

    def __init__(self, layer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv, self.bn, self.layer = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), layer()
        self.linear = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.layer(self.bn(torch.relu(self.conv(x)))).mean((2, 3)))


@pytest.mark.parametrize(
    ("layer", "folds"),
    [
        (lambda: nn.Conv2d(6, 6, 3), True),
        (lambda: nn.Conv2d(6, 6, 3, stride=2, bias=False), True),
        (lambda: nn.Conv2d(6, 6, 3, groups=2), True),
        (lambda: nn.Conv2d(6, 6, (1, 3), groups=6, dilation=2), True),
        (lambda: nn.Conv2d(6, 6, 1, groups=3, bias=False), True),
        (lambda: nn.Conv2d(6, 6, 3, padding=1), False),
        (lambda: nn.Conv2d(6, 6, 3, padding=(0, 1)), False),
        (lambda: nn.Conv2d(6, 6, 3, padding="same"), False),
        (lambda: nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect"), False),
        (lambda: nn.ConvTranspose2d(6, 6, 3), False),
        (lambda: nn.MaxPool2d(2), False),
    ],
)
def test_forward_only_where_it_is_exact(layer: Callable[[], nn.Module], folds: bool) -> None:
    graph = capture(randomized(Forward(layer), images(8)), SPEC)
    folded = fold_batch_norms(graph)
    assert (list(batch_norms(folded)) == []) == folds
    assert relative(folded(images(5, 1)), graph(images(5, 1))) < 1e-5


@pytest.mark.parametrize("padding", [0, 1, "valid", "same"])
def test_a_norm_without_offset_folds_forward_through_padding(padding: int | str) -> None:
    """A padded zero is what the norm would have made of it; in one channel of six it is not."""
    model = randomized(Forward(lambda: nn.Conv2d(6, 6, 3, padding=padding)), images(8))
    norm = model.get_submodule("bn")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    for offset in (0.0, 1e-3):
        with torch.no_grad():
            norm.running_mean.zero_()
            norm.bias.zero_()[3] = offset
        graph = capture(model, SPEC)
        folded = fold_batch_norms(graph)
        padded = padding in (1, "same")
        assert list(batch_norms(folded)) == (["bn"] if offset and padded else [])
        assert relative(folded(images(5, 1)), graph(images(5, 1))) < 1e-5


def test_forward_into_a_grouped_convolution_by_hand() -> None:
    model = randomized(Forward(lambda: nn.Conv2d(6, 6, 1, groups=2)), images(8))
    graph = capture(model, SPEC)
    folded = fold_batch_norms(graph)
    conv, norm = graph.get_submodule("layer"), graph.get_submodule("bn")
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert conv.bias is not None
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    shift = norm.bias - norm.running_mean * gain
    for out in range(6):
        bias = conv.bias[out].item()
        for i in range(3):
            channel = 3 * (out // 3) + i
            weight = conv.weight[out, i, 0, 0] * gain[channel]
            actual = folded.get_parameter("layer.weight")[out, i, 0, 0]
            torch.testing.assert_close(actual, weight, rtol=1e-5, atol=1e-7)
            bias += (conv.weight[out, i, 0, 0] * shift[channel]).item()
        assert folded.get_parameter("layer.bias")[out].item() == pytest.approx(bias, abs=1e-5)


class Readers(nn.Module):
    """Where the output of a convolution, or of a batch norm, has several readers."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.left, self.right = (
            nn.Conv2d(4, 4, 3),
            nn.Conv2d(4, 4, 3, padding=int(kind == "one padded")),
        )
        self.linear = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.kind == "convolution":
            return self.linear((torch.relu(self.bn(x)) + x).mean((2, 3)))
        x = self.bn(torch.relu(x))
        y = self.left(x).mean((2, 3)) + self.right(x).mean((2, 3))
        return self.linear(y + x.mean((2, 3)) if self.kind == "an add" else y)


@pytest.mark.parametrize(
    ("kind", "left"),
    [("convolution", ["bn"]), ("both", []), ("one padded", ["bn"]), ("an add", ["bn"])],
)
def test_several_readers(kind: str, left: list[str]) -> None:
    graph = capture(randomized(Readers(kind), images(8)), SPEC)
    folded = fold_batch_norms(graph)
    assert list(batch_norms(folded)) == left
    assert relative(folded(images(5, 1)), graph(images(5, 1))) < 1e-5


def test_folding_twice_changes_nothing_more() -> None:
    once = fold_batch_norms(captured("Grouped"))
    twice = fold_batch_norms(once)
    assert torch.equal(once(images(2)), twice(images(2)))


def test_small_variances_lose_nothing() -> None:
    model = build("Tiny")
    norm = model.get_submodule("bn1")
    norm.running_var.fill_(1e-9)  # pyright: ignore
    norm.weight.data.fill_(1e-4)  # pyright: ignore
    graph = capture(model, SPEC)
    assert relative(fold_batch_norms(graph)(images(4)), graph(images(4))) < 1e-4


def student_with_norms(name: str, scheme: Scheme) -> fx.GraphModule:
    """Quantized without folding first; slopes of both signs, one of 0, one of nearly 0."""
    graph = captured(name)
    for norm in batch_norms(graph).values():
        slopes = torch.linspace(-1.5, 1.5, norm.num_features)
        slopes[norm.num_features // 2] = 0
        slopes[-1] = 1e-42  # times a scale it is no float32
        norm.weight = nn.Parameter(slopes, requires_grad=False)
    student = insert_quantizers(graph, scheme)
    calibrate(student, [images(16, seed=1)], MinMax())
    return student


SCHEMES = [
    Scheme(bits=f"W{weights}A8", weight_granularity=granularity, symmetric_weights=even)
    for weights in (2, 8)
    for granularity in ("tensor", "channel")
    for even in (False, True)
]


@pytest.mark.parametrize(
    "scheme",
    SCHEMES,
    ids=lambda s: f"{s.label} {s.weight_granularity} {'symmetric' * s.symmetric_weights}",
)
@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("Tiny", set[str]()),
        ("Grouped", set[str]()),
        ("InPlaceResidual", {"bn2"}),
        ("NormAfterActivation", {"bn1", "bn2", "bn3", "bn4"}),  # a grid has no scale per input
    ],
)
def test_grids_take_batch_norms_over_without_moving_a_code(
    name: str, left: set[str], scheme: Scheme
) -> None:
    student = student_with_norms(name, scheme).double()
    before = fingerprint(student)
    folded = fold_into_grids(student)
    assert relative(folded(images(5).double()), student(images(5).double())) < 1e-5
    assert fingerprint(student) == before
    # On a symmetric grid codes without a mirror image may keep one more.
    kept = set(batch_norms(folded))
    assert kept >= left if scheme.symmetric_weights else kept == left
    for path, layer in folded.named_modules():
        if not isinstance(layer, QUANTIZED):
            continue
        old = student.get_submodule(path)
        assert isinstance(old, QUANTIZED)
        ends = old.weight_quantizer.grid.qmin + old.weight_quantizer.grid.qmax
        codes, stored = (m.weight_quantizer.codes(m.weight) for m in (old, layer))
        mirrored = (-codes if scheme.symmetric_weights else ends - codes) == stored
        nothing = layer.weight_quantizer(layer.weight) == 0
        stay, turn, vanish = (m.flatten(1).all(1) for m in (codes == stored, mirrored, nothing))
        assert (stay | turn | vanish).all()


def test_a_code_without_a_mirror_image_keeps_its_batch_norm() -> None:
    """-2 of a symmetric grid of 2 bits has no +2."""
    student = student_with_norms("Tiny", Scheme(bits="W2A8", symmetric_weights=True))
    first = next(m for m in student.modules() if isinstance(m, QUANTIZED))
    with torch.no_grad():
        first.weight[0, 0] = -2 * first.weight_quantizer.scale.flatten()[0]
    folded = fold_into_grids(student)
    assert len(batch_norms(folded)) == len(batch_norms(student)) - 1
    assert relative(folded(images(5)), student(images(5))) < 1e-5


def test_a_layer_left_in_float_takes_its_batch_norm_over_as_any() -> None:
    student = student_with_norms("Tiny", Scheme(bits="W8A8"))
    for layer in student.modules():
        if isinstance(layer, QUANTIZED):
            layer.weight_quantizer.enabled = False
    folded = fold_into_grids(student)
    assert not batch_norms(folded)
    assert relative(folded(images(5)), student(images(5))) < 1e-5


class TwoHalves(nn.Module):
    """One body looks at both halves of an image; `extra` looks at a third time."""

    def __init__(self, *, extra: bool = False, forward_too: bool = False) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.behind = nn.BatchNorm1d(6)
        self.linear, self.extra, self.forward_too = nn.Linear(6, 5), extra, forward_too

    def body(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv(x))).mean((2, 3))
        return self.linear(self.behind(x) if self.forward_too else x)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x[..., :4], x[..., 4:]
        found = self.body(left) - self.body(right)
        return found + self.conv(x).mean((2, 3))[:, :5] if self.extra else found


def halves(**options: bool) -> tuple[nn.Module, fx.GraphModule]:
    network = randomized(TwoHalves(**options), images(8))
    return network, capture(network, SPEC)


@pytest.mark.parametrize("forward_too", [False, True])
def test_a_norm_called_twice_is_folded_once(forward_too: bool) -> None:
    network, graph = halves(forward_too=forward_too)
    folded = fold_batch_norms(graph.double())
    assert not batch_norms(folded)
    calls = [str(node.target) for node in folded.graph.nodes if node.op == "call_module"]
    assert calls.count("conv") == calls.count("linear") == 2  # one layer each, for both halves
    x = images(5).double()
    assert relative(folded(x), network.double()(x)) < 1e-12
    conv, norm = network.get_submodule("conv"), network.get_submodule("bn")
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    expected = conv.weight * factor.view(-1, 1, 1, 1)
    torch.testing.assert_close(folded.get_parameter("conv.weight").data, expected.data)


def test_a_layer_that_is_called_without_its_norm_too_keeps_it() -> None:
    network, graph = halves(extra=True)
    folded = fold_batch_norms(graph)
    assert list(batch_norms(folded)) == ["bn"]
    assert relative(folded(images(5)), network(images(5))) < 1e-5


def test_the_grids_of_a_layer_called_twice_take_its_norm_over_once() -> None:
    _, graph = halves()
    student = insert_quantizers(graph, Scheme(bits="W4A8", target="paper"))
    calibrate(student, [images(16, seed=1)], MinMax())
    folded = fold_into_grids(student.double())
    assert not batch_norms(folded)
    assert relative(folded(images(5).double()), student(images(5).double())) < 1e-5
