from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from datafree.quant.grid import Grid, Ste, codes, fake_quantize, learned_ste

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    grid: Grid
    low: float
    high: float
    values: list[float]

    @property
    def tensor(self) -> Tensor:
        return torch.tensor(self.values, dtype=torch.float32)

    def parameters(self) -> tuple[Tensor, Tensor]:
        return self.grid.parameters(torch.tensor(self.low), torch.tensor(self.high))


def singles(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, width=32, allow_subnormal=False)


CASES = st.builds(
    Case,
    st.builds(Grid, st.integers(2, 8), st.booleans(), st.booleans()),
    singles(-50, 50),
    singles(-50, 50),
    st.lists(singles(-100, 100), min_size=1, max_size=30),
).filter(lambda case: case.low <= case.high)
properties = settings(deadline=None, max_examples=80, derandomize=True)


def by_numpy(case: Case) -> tuple[Array, Array, np.float32, np.float32]:
    """Codes, values, scale and zero point of B.1, in numpy's float32."""
    bits, one = case.grid.bits, np.float32(1)
    low, high = np.float32(min(case.low, 0)), np.float32(max(case.high, 0))
    if case.grid.symmetric and case.grid.signed:
        qmin, qmax = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        scale, zero = max(-low, high) / np.float32(qmax), np.float32(0)
    elif case.grid.symmetric:
        qmin, qmax = 0, 2**bits - 1
        scale, zero = high / np.float32(qmax), np.float32(0)
    else:
        qmin, qmax = 0, 2**bits - 1
        scale = (high - low) / np.float32(qmax)
        zero = np.rint(-low / max(scale, np.float32(1e-8))).astype(np.float32)
    scale = max(scale, np.float32(1e-8)) * one
    q = np.clip(np.rint(np.array(case.values, np.float32) / scale) + zero, qmin, qmax).astype(
        np.float32
    )
    return q, (q - zero) * scale, scale, zero


@pytest.mark.parametrize(
    ("grid", "qmin", "qmax"),
    [
        (Grid(8), 0, 255),
        (Grid(3), 0, 7),
        (Grid(8, symmetric=True), -128, 127),
        (Grid(2, symmetric=True), -2, 1),
        (Grid(4, symmetric=True, signed=False), 0, 15),
        (Grid(4, symmetric=False, signed=False), 0, 15),
    ],
)
def test_limits(grid: Grid, qmin: int, qmax: int) -> None:
    assert (grid.qmin, grid.qmax) == (qmin, qmax)


def test_affine_parameters_by_hand() -> None:
    scale, zero = Grid(4).parameters(
        torch.tensor([-1.0, 2.0, -3.0]), torch.tensor([2.0, 3.0, -1.0])
    )
    # ranges [-1, 2], [0, 3] and [-3, 0] after widening, each 3 long
    assert scale.tolist() == pytest.approx([0.2, 0.2, 0.2])
    assert zero.tolist() == [5, 0, 15]


def test_symmetric_parameters_by_hand() -> None:
    low, high = torch.tensor([-7.0, -1.0]), torch.tensor([3.0, 14.0])
    scale, zero = Grid(4, symmetric=True).parameters(low, high)
    assert scale.tolist() == [1, 2]
    assert zero.tolist() == [0, 0]
    scale, _ = Grid(4, symmetric=True, signed=False).parameters(low, high)
    assert scale.tolist() == pytest.approx([3 / 15, 14 / 15])


def test_rounding_is_half_to_even() -> None:
    values = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    grid = Grid(8, symmetric=True)
    assert codes(values, torch.tensor(1.0), torch.tensor(0.0), grid).tolist() == [0, 2, 2, 0, -2]


@properties
@given(CASES)
@example(Case(Grid(8), 0.0, 0.0, [0.0, 1.0, -1.0]))
@example(Case(Grid(2, symmetric=True, signed=False), -3.0, -1.0, [-2.0, 0.0]))
def test_equals_numpy_exactly(case: Case) -> None:
    scale, zero = case.parameters()
    q, values, np_scale, np_zero = by_numpy(case)
    assert scale.item() == np_scale
    assert zero.item() == np_zero
    np.testing.assert_array_equal(codes(case.tensor, scale, zero, case.grid).numpy(), q)
    np.testing.assert_array_equal(
        fake_quantize(case.tensor, scale, zero, case.grid).numpy(), values
    )


@properties
@given(CASES)
def test_codes_stay_on_the_grid(case: Case) -> None:
    scale, zero = case.parameters()
    q = codes(case.tensor * 1e4, scale, zero, case.grid)
    assert torch.equal(q, q.round())
    assert q.min() >= case.grid.qmin
    assert q.max() <= case.grid.qmax
    assert case.grid.qmin <= zero.item() <= case.grid.qmax
    assert scale.item() > 0


@properties
@given(CASES)
def test_quantized_values_stay_where_they_are(case: Case) -> None:
    scale, zero = case.parameters()
    once = fake_quantize(case.tensor, scale, zero, case.grid)
    assert torch.equal(fake_quantize(once, scale, zero, case.grid), once)


@properties
@given(CASES)
def test_zero_is_exact(case: Case) -> None:
    scale, zero = case.parameters()
    assert fake_quantize(torch.zeros(1), scale, zero, case.grid).item() == 0


@properties
@given(CASES)
def test_order_is_kept(case: Case) -> None:
    scale, zero = case.parameters()
    rounded = fake_quantize(case.tensor.sort().values, scale, zero, case.grid)
    assert (rounded.diff() >= 0).all()


@properties
@given(CASES, st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_error_inside_the_range_is_at_most_half_a_step(case: Case, shares: list[float]) -> None:
    low, high = min(case.low, 0.0), max(case.high, 0.0)
    if case.grid.symmetric and not case.grid.signed:
        low = 0.0
    values = torch.tensor([low + share * (high - low) for share in shares])
    scale, zero = case.parameters()
    error = (fake_quantize(values, scale, zero, case.grid) - values).abs().max().item()
    assert error <= 0.5 * scale.item() + 1e-5 * max(-low, high)


@properties
@given(CASES)
def test_equals_torch_up_to_ties(case: Case) -> None:
    """torch multiplies with the reciprocal of the scale: near ties it may go the other way."""
    scale, zero = case.parameters()
    mine = fake_quantize(case.tensor, scale, zero, case.grid)
    theirs = torch.fake_quantize_per_tensor_affine(
        case.tensor, scale.item(), int(zero.item()), case.grid.qmin, case.grid.qmax
    )
    ratio = case.tensor.double() / scale.double()
    tie = (ratio - ratio.floor() - 0.5).abs() <= 1e-5 * ratio.abs().clamp(min=1)
    assert torch.equal(mine[~tie], theirs[~tie])
    assert ((mine - theirs)[tie].abs() <= 1.0001 * scale).all()


@properties
@given(CASES)
def test_forward_is_the_same_with_and_without_gradients(case: Case) -> None:
    scale, zero = case.parameters()
    expected = fake_quantize(case.tensor, scale, zero, case.grid)
    clipped = fake_quantize(case.tensor.requires_grad_(), scale, zero, case.grid)
    assert torch.equal(clipped, expected)
    full = fake_quantize(case.tensor.requires_grad_(), scale, zero, case.grid, "full")
    assert torch.equal(full, expected)


def gradients(ste: Literal["clipped", "full"], wanted: str) -> Tensor:
    """On codes 0..3, zero point 1, scale 0.5: representable -0.5, 0, 0.5, 1."""
    values = torch.tensor([-5.0, -0.7, -0.4, 0.1, 0.3, 1.1, 1.4, 9.0], requires_grad=True)
    scale = torch.full((8,), 0.5, requires_grad=True)
    rounded = fake_quantize(values, scale, torch.tensor(1.0), Grid(2), ste)
    assert rounded.tolist() == [-0.5, -0.5, -0.5, 0, 0.5, 1, 1, 1]
    inputs = {"values": values, "scale": scale}[wanted]
    (gradient,) = torch.autograd.grad(
        rounded.sum(), inputs, allow_unused=True, materialize_grads=True
    )
    return gradient


def test_gradient_of_values_stops_where_they_are_clipped() -> None:
    """-0.7 and 1.1 round to codes 0 and 3, still inside; 1.4 is 2.8 steps: code 4, clipped."""
    assert gradients("clipped", "values").tolist() == [0, 1, 1, 1, 1, 1, 0, 0]


def test_full_gradient_passes_everywhere() -> None:
    assert gradients("full", "values").tolist() == [1] * 8
    assert not gradients("full", "scale").any()


def test_gradient_of_the_scale_is_that_of_learned_steps() -> None:
    """With codes counted from the zero point: inside code - value / scale, outside the code."""
    expected = [-1, -1 + 1.4, -1 + 0.8, 0 - 0.2, 1 - 0.6, 2 - 2.2, 2, 2]
    assert gradients("clipped", "scale").tolist() == pytest.approx(expected, abs=1e-6)


def test_gradient_of_one_scale_sums_over_its_values() -> None:
    values = torch.tensor([[0.3, 9.0], [0.1, 0.2]])
    scale = torch.tensor([[0.5], [0.5]], requires_grad=True)
    rounded = fake_quantize(values, scale, torch.zeros(2, 1), Grid(2))
    (gradient,) = torch.autograd.grad(rounded.sum(), scale)
    assert gradient.flatten().tolist() == pytest.approx([(1 - 0.6) + 3, -0.2 - 0.4], abs=1e-6)


def test_inputs_are_not_overwritten() -> None:
    values = torch.tensor([0.3, 9.0])
    with torch.no_grad():
        fake_quantize(values, torch.tensor(0.5), torch.tensor(0.0), Grid(2))
    assert values.tolist() == pytest.approx([0.3, 9.0])


@pytest.mark.parametrize("zero_point", [0.0, 3.0])
@pytest.mark.parametrize("shape", [(), (4, 1, 1)])
def test_gradients_are_those_of_autograd_through_the_formula(
    shape: tuple[int, ...], zero_point: float
) -> None:
    """Rounding as the identity, then clamp and rescale, differentiated by autograd."""
    values = (torch.randn(3, 4, 5, 6) * 2).requires_grad_()
    scale = (torch.rand(shape) * 0.5 + 0.1).requires_grad_()
    zero, grid = torch.full(shape, zero_point), Grid(3)
    slopes = torch.randn(3, 4, 5, 6)
    ratio = values / scale
    rounded = ratio + (torch.round(ratio) - ratio).detach()
    formula = torch.clamp(rounded + zero, 0, 7) - zero
    outputs = fake_quantize(values, scale, zero, grid)
    torch.testing.assert_close(outputs, formula * scale)
    expected = torch.autograd.grad((formula * scale * slopes).sum(), [values, scale])
    found = torch.autograd.grad((outputs * slopes).sum(), [values, scale])
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-4)
    (only,) = torch.autograd.grad(fake_quantize(values, scale.detach(), zero, grid).sum(), [values])
    code = (ratio + zero).round()
    torch.testing.assert_close(only, (code == code.clamp(0, 7)).float())


@pytest.mark.parametrize("zero_point", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(), (4, 1, 1)])
def test_gradients_of_clipping_first_are_those_of_autograd_through_lsq_s_formula(
    shape: tuple[int, ...], zero_point: float
) -> None:
    """LSQ Eqs. (1)-(3): ``s round(clip(v / s))``, rounding as the identity; two bits."""
    values = (torch.randn(3, 4, 5, 6) * 2).requires_grad_()
    scale = (torch.rand(shape) * 0.5 + 0.3).requires_grad_()
    zero, grid = torch.full(shape, zero_point), Grid(2)
    slopes = torch.randn(3, 4, 5, 6)
    clipped = torch.clamp(values / scale, -zero_point, 3 - zero_point)
    formula = (clipped + (torch.round(clipped) - clipped).detach()) * scale
    outputs = fake_quantize(values, scale, zero, grid, "clip_first")
    torch.testing.assert_close(outputs, formula)
    expected = torch.autograd.grad((formula * slopes).sum(), [values, scale])
    found = torch.autograd.grad((outputs * slopes).sum(), [values, scale])
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-4)
    other = torch.autograd.grad(
        (fake_quantize(values, scale, zero, grid) * slopes).sum(), [values, scale]
    )
    assert (other[0] != found[0]).any() and (other[1] != found[1]).any()


def test_clipping_first_by_hand() -> None:
    """3.3 steps are rounded to code 3 of 0 … 3, and are clipped before they are."""
    values, scale = torch.tensor([1.65], requires_grad=True), torch.tensor(0.5, requires_grad=True)
    gradients = [
        torch.autograd.grad(fake_quantize(values, scale, torch.tensor(0.0), Grid(2), ste).sum(),
                            [values, scale])
        for ste in ("clipped", "clip_first")
    ]  # fmt: skip
    assert [[round(g.item(), 4) for g in pair] for pair in gradients] == [[1, -0.3], [0, 3]]


def test_clipping_first_where_the_step_does_not_learn() -> None:
    """Steps of 1 and codes from 0 to 3: 3.4 is rounded to 3, and beyond it."""
    values = torch.tensor([-0.4, 1.2, 3.0, 3.4, 3.6])
    expected = {"clipped": [1, 1, 1, 1, 0], "clip_first": [0, 1, 1, 0, 0], "full": [1, 1, 1, 1, 1]}
    stes: tuple[Ste, ...] = ("clipped", "clip_first", "full")
    for ste in stes:
        given = values.clone().requires_grad_()
        found = fake_quantize(given, torch.ones(()), torch.zeros(()), Grid(2), ste)
        assert found.tolist() == [0, 1, 3, 3, 3]
        found.sum().backward()
        assert given.grad is not None
        assert given.grad.tolist() == expected[ste]


def test_a_learned_step_gets_a_gradient() -> None:
    assert learned_ste("full") == "clipped"
    assert learned_ste("clipped") == "clipped"
    assert learned_ste("clip_first") == "clip_first"
