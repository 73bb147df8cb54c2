from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from datafree.calibrators.base import calibrate
from datafree.calibrators.minmax import MinMax
from datafree.config import Scheme
from datafree.graph.capture import capture
from datafree.graph.floats import Computation, computations, float_layers
from datafree.graph.fold import fold_batch_norms
from datafree.graph.insert import insert_quantizers
from datafree.testing.watching import fingerprint
from networks import SPEC, captured, images


class Head(nn.Module):
    """Anything on images (3, 8, 8), and a classifier of 5 on what it returns, (N, …)."""

    def __init__(self, body: nn.Module, features: int) -> None:
        super().__init__()
        self.body, self.linear = body, nn.Linear(features, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.body(x).flatten(1))


class Products(nn.Module):
    """Every way to multiply with a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.right = nn.Parameter(torch.randn(8, 6))
        self.three = nn.Parameter(torch.randn(6, 2, 7))
        self.gain = nn.Parameter(torch.rand(7))
        self.place = nn.Parameter(torch.rand(3, 8, 7))
        self.offset, self.square = nn.Parameter(torch.rand(4)), nn.Parameter(torch.rand(7, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = x @ self.right  # (N, 3, 8, 6)
        x = torch.einsum("ncij,jkl->ncil", x, self.three) * self.gain + self.place
        return torch.addmm(self.offset, x.flatten(0, 2), self.square).view(-1, 96)


class Recurrent(nn.Module):
    """Rows of an image, one after the other."""

    def __init__(self, kind: type[nn.Module], **options: object) -> None:
        super().__init__()
        self.rnn = kind(24, 5, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x.transpose(1, 2).flatten(2))[0]


class Attention(nn.Module):
    """Self-attention of eight tokens with 24 features in four heads."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(24)
        self.attention = nn.MultiheadAttention(24, 4, batch_first=True)
        self.token = nn.Parameter(torch.rand(1, 1, 24))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x.transpose(1, 2).flatten(2))
        x = torch.cat((self.token.expand(x.shape[0], 1, 24), x), 1)
        return self.attention(x, x, x)[0]


class Up(nn.Module):
    """Transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.ConvTranspose2d(3, 6, 4, stride=2, padding=1)
        self.grouped = nn.ConvTranspose2d(6, 4, 3, groups=2, bias=False)
        self.norm, self.act = nn.BatchNorm2d(4), nn.PReLU(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.grouped(self.plain(x))))


def floats_of(model: nn.Module) -> dict[str, Computation]:
    graph = capture(model.eval(), SPEC)
    before = fingerprint(graph)
    found = float_layers(insert_quantizers(fold_batch_norms(graph), Scheme()), SPEC.shape)
    assert fingerprint(graph) == before
    assert not any(step.quantized for step in found)
    assert all(step.carries for step in found)
    return {step.name: step for step in found}


def numbers(found: dict[str, Computation]) -> dict[str, tuple[str, int, int]]:
    return {name: (step.op, step.macs, step.bytes) for name, step in found.items()}


def test_transposed_convolutions_by_hand() -> None:
    positions, out = 8 * 8, 18 * 18
    assert numbers(floats_of(Head(Up(), 4 * out))) == {
        "body.plain": ("conv_transpose2d", positions * 3 * 6 * 16, 4 * 3 * 6 * 16),
        "body.grouped": ("conv_transpose2d", 16 * 16 * 6 * 2 * 9, 4 * 6 * 2 * 9),
        "body.norm": ("BatchNorm2d", 4 * out, 4 * 4),
        "body.act": ("PReLU", 4 * out, 4 * 4),
    }


def test_products_with_parameters_by_hand() -> None:
    assert numbers(floats_of(Head(Products(), 96))) == {
        "body.right": ("matmul", 24 * 8 * 6, 4 * 48),
        "body.three": ("einsum", 24 * 6 * 2 * 7, 4 * 84),
        "body.gain": ("mul", 24 * 7, 4 * 7),
        "body.place": ("add", 0, 4 * 168),
        "body.square": ("addmm", 24 * 7 * 4, 4 * 28),
    }


# torch's own flattened weights, which export finds twice
@pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning")
@pytest.mark.parametrize(
    ("kind", "options", "op", "weights"),
    [
        (nn.LSTM, {}, "lstm", 4 * 5 * (24 + 5)),
        (nn.GRU, {"bidirectional": True}, "gru", 2 * 3 * 5 * (24 + 5)),
        (nn.RNN, {"num_layers": 2, "bias": False}, "rnn_tanh", 5 * (24 + 5) + 5 * (5 + 5)),
    ],
)
def test_recurrent_layers_by_hand(
    kind: type[nn.Module], options: dict[str, object], op: str, weights: int
) -> None:
    """Every weight once for each of the eight rows; biases are not weights."""
    features = 8 * 5 * (2 if "bidirectional" in options else 1)
    (found,) = floats_of(Head(Recurrent(kind, **options), features)).values()
    assert (found.name, found.op) == ("body.rnn", op)
    assert (found.macs, found.bytes) == (8 * weights, 4 * weights)


def test_attention_by_hand() -> None:
    """Projections are layers; the products of tokens have no weights, and stay in float."""
    graph = capture(Head(Attention(), 9 * 24).eval(), SPEC)
    student = insert_quantizers(fold_batch_norms(graph), Scheme())
    found = {step.name: step for step in computations(student, SPEC.shape)}
    projections = sum(step.macs for step in found.values() if step.op == "Linear")
    assert projections == 9 * 24 * (3 * 24 + 24) + 9 * 24 * 5
    assert all(step.quantized for step in found.values() if step.op == "Linear")
    tokens = [step for step in found.values() if not step.carries]
    assert sum(step.macs for step in tokens) == 2 * 4 * 9 * 9 * 6
    assert sum(step.bytes for step in tokens) == 0
    left = numbers({n: step for n, step in found.items() if step.carries and not step.quantized})
    assert left == {"body.norm": ("layer_norm", 8 * 24, 4 * 24), "body.token": ("cat", 0, 4 * 24)}


def test_a_network_of_convolutions_has_none_left() -> None:
    student = insert_quantizers(fold_batch_norms(captured("Tiny")), Scheme())
    calibrate(student, [images(4)], MinMax())
    assert float_layers(student, SPEC.shape) == []
    found = {step.name: (step.macs, step.bytes) for step in computations(student, SPEC.shape)}
    assert found == {
        "conv1": (64 * 4 * 27, 4 * 4 * 27),
        "conv2": (16 * 6 * 36, 4 * 6 * 36),
        "linear": (30, 4 * 30),
    }


def test_calls_add_up_and_weights_count_once() -> None:
    found = {step.name: step for step in computations(captured("Tied"), SPEC.shape)}
    weights = 4 * 4 * 9
    twice, strided = found["twin"], found["twin_1"]
    assert (twice.macs, twice.bytes) == (2 * 64 * weights, 4 * weights)
    assert (strided.macs, strided.bytes) == (16 * weights, 0)
    assert not any(step.quantized for step in found.values())


def test_a_quantizer_that_is_switched_off_leaves_its_layer_in_float() -> None:
    student = insert_quantizers(fold_batch_norms(captured("Tiny")), Scheme())
    student.get_submodule("conv2").weight_quantizer.enabled = False  # pyright: ignore
    assert [step.name for step in float_layers(student, SPEC.shape)] == ["conv2"]


def test_dots_and_letters_of_einsum() -> None:
    class Dots(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(8, 5))

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("...i,io->...o", x, self.w).flatten(1)

    found = floats_of(Head(Dots(), 3 * 8 * 5))
    assert numbers(found) == {"body.w": ("einsum", 24 * 8 * 5, 4 * 40)}
