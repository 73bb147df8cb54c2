from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from datafree.quant.grid import Grid
from datafree.quant.modules import (
    QUANTIZED,
    ActivationQuantizer,
    Quantizer,
    quantize_layer,
)
from datafree.testing.watching import fingerprint

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 7)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), (2, 4, 7, 7)),
    "grouped": (
        lambda: nn.Conv2d(4, 6, (1, 3), dilation=2, groups=2, padding="same"),
        (2, 4, 7, 7),
    ),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), (2, 4, 7, 7)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 2), (2, 4, 5, 5, 5)),
    "linear": (lambda: nn.Linear(7, 6), (2, 3, 7)),
}


@pytest.fixture(params=list(LAYERS))
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    make, shape = LAYERS[request.param]
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        return make().requires_grad_(False), torch.randn(shape)


def by_rows(weight: Tensor, bits: int) -> Tensor:
    """Min-max affine quantization of every output channel, one by one."""
    rows: list[Tensor] = []
    for row in weight:
        low, high = min(float(row.min()), 0.0), max(float(row.max()), 0.0)
        scale = (high - low) / (2**bits - 1)
        zero = round(-low / scale)
        rows.append((((row / scale).round() + zero).clamp(0, 2**bits - 1) - zero) * scale)
    return torch.stack(rows)


def test_a_quantized_layer_computes_with_the_rounded_weight(case: tuple[nn.Module, Tensor]) -> None:
    layer, x = case
    quantized = quantize_layer(layer, Quantizer(Grid(3), axis=0))
    assert isinstance(quantized, QUANTIZED)
    expected = copy.deepcopy(layer)
    expected.weight.copy_(by_rows(layer.weight, 3))  # pyright: ignore
    assert not torch.allclose(quantized(x), layer(x), atol=1e-3)
    torch.testing.assert_close(quantized(x), expected(x))


def test_the_layer_is_shared_not_changed(case: tuple[nn.Module, Tensor]) -> None:
    layer, x = case
    before, output = fingerprint(layer), layer(x)
    quantized = quantize_layer(layer, Quantizer(Grid(2), axis=0))
    quantized(x)
    assert fingerprint(layer) == before
    assert torch.equal(layer(x), output)
    assert quantized.weight is layer.weight
    assert not hasattr(layer, "weight_quantizer")


def test_without_rounding_it_is_the_layer(case: tuple[nn.Module, Tensor]) -> None:
    layer, x = case
    quantizer = Quantizer(Grid(2), axis=0)
    quantized = quantize_layer(layer, quantizer)
    quantizer.enabled = False
    assert torch.equal(quantized(x), layer(x))


def test_copies_and_pickles_compute_the_same(case: tuple[nn.Module, Tensor]) -> None:
    layer, x = case
    quantized = quantize_layer(layer, Quantizer(Grid(4, symmetric=True), axis=0))
    for other in (copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized))):
        assert torch.equal(other(x), quantized(x))
        assert other.weight is not layer.weight


def test_a_range_set_before_is_kept() -> None:
    quantizer = Quantizer(Grid(8, symmetric=True))
    quantizer.set_range(torch.tensor(-1.27), torch.tensor(0.5))
    quantize_layer(nn.Linear(3, 2), quantizer)
    assert quantizer.scale.item() == pytest.approx(0.01)


def test_gradients_reach_the_weight() -> None:
    layer = nn.Linear(3, 2, bias=False)
    quantized = quantize_layer(layer, Quantizer(Grid(4), axis=0))
    x = torch.ones(1, 3)
    (gradient,) = torch.autograd.grad(quantized(x).sum(), layer.weight)
    assert gradient.tolist() == [[1, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize(("axis", "shape"), [(None, ()), (0, (3, 1, 1)), (1, (1, 4, 1))])
def test_fit_covers_the_extremes(axis: int | None, shape: tuple[int, ...]) -> None:
    values = torch.randn(3, 4, 50, generator=torch.Generator().manual_seed(0))
    quantizer = Quantizer(Grid(8), axis=axis)
    quantizer.fit(values)
    assert quantizer.scale.shape == quantizer.zero_point.shape == shape
    slices = [values] if axis is None else list(values.unbind(axis))
    expected = [(float(v.max()) - float(v.min())) / 255 for v in slices]
    assert quantizer.scale.flatten().tolist() == pytest.approx(expected)
    assert ((quantizer(values) - values).abs() <= quantizer.scale / 2 + 1e-6).all()


def test_a_quantizer_off_lets_everything_through() -> None:
    quantizer = ActivationQuantizer(Grid(2))
    quantizer.enabled = False
    values = torch.randn(3)
    assert quantizer(values) is values


def test_a_quantizer_knows_whether_it_has_a_range() -> None:
    quantizer = ActivationQuantizer(Grid(2))
    assert not quantizer.has_range
    quantizer.set_range(torch.tensor(0.0), torch.tensor(3.0))
    assert quantizer.has_range
    assert quantizer.codes(torch.tensor([-1.0, 0.4, 1.6, 9.0])).tolist() == [0, 0, 2, 3]
    assert quantizer(torch.tensor([-1.0, 0.4, 1.6, 9.0])).tolist() == [0, 0, 2, 3]


@pytest.mark.parametrize(("ste", "expected"), [("clipped", [0, 1, 0]), ("full", [1, 1, 1])])
def test_a_quantizer_has_the_gradient_asked_for(ste: str, expected: list[float]) -> None:
    quantizer = Quantizer(Grid(2), ste=ste)  # pyright: ignore
    quantizer.set_range(torch.tensor(0.0), torch.tensor(3.0))
    values = torch.tensor([-1.0, 1.2, 9.0], requires_grad=True)
    quantizer(values).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == expected


def test_quantizers_say_what_they_are() -> None:
    assert repr(Quantizer(Grid(4))) == "Quantizer(4-bit affine, codes 0..15)"
    assert "3-bit symmetric, codes -4..3" in repr(ActivationQuantizer(Grid(3, symmetric=True)))


def test_range_survives_a_state_dict() -> None:
    layer = nn.Conv2d(3, 4, 1)
    quantized = quantize_layer(layer, Quantizer(Grid(4), axis=0))
    state = quantized.state_dict()
    assert set(state) == {"weight", "bias", "weight_quantizer.scale", "weight_quantizer.zero_point"}
    other = quantize_layer(nn.Conv2d(3, 4, 1), Quantizer(Grid(4), axis=0))
    other.load_state_dict(state)
    x = torch.randn(1, 3, 2, 2)
    assert torch.equal(other(x), quantized(x))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(-1.0, 1.0, (-2, 3)), (-4.0, 1.0, (-4, 3)), (-1.0, 5.0, (-2, 5)), (0.0, 0.0, (-2, 3))],
)
def test_a_range_covers_what_is_known(
    low: float, high: float, expected: tuple[float, float]
) -> None:
    quantizer = ActivationQuantizer(Grid(8), covers=(-2.0, 3.0))
    quantizer.set_range(torch.tensor(low), torch.tensor(high))
    ends = quantizer(torch.tensor([-100.0, 100.0]))
    torch.testing.assert_close(ends, torch.tensor(expected).float(), rtol=0, atol=0.02)
