from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from datafree.quant.grid import Grid, fake_quantize
from datafree.quant.modules import Quantizer
from datafree.quant.trained import LSQ, PACT, FollowedRange

WEIGHT = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))


def plain(
    low: float, high: float, bits: int = 3, kind: type[Quantizer] = Quantizer, **grid: Any
) -> Quantizer:
    quantizer = kind(Grid(bits, **grid))
    quantizer.set_range(torch.tensor(low), torch.tensor(high))
    return quantizer


def per_channel(bits: int = 3, share: float = 0.7, *, symmetric: bool = False) -> Quantizer:
    """Of `WEIGHT`, whose tails it clips."""
    quantizer = Quantizer(Grid(bits, symmetric=symmetric), axis=0)
    quantizer.fit(WEIGHT * share)
    return quantizer


def gradient(module: LSQ | PACT, values: Tensor, slopes: Tensor | float = 1.0) -> Tensor:
    (found,) = torch.autograd.grad((module(values) * slopes).sum(), [module.learned])
    return found


def lsq_slope(value: float, step: float, zero_point: float, grid: Grid) -> float:
    """``round(v/s) - v/s`` inside, the clipped code outside, from the zero point."""
    code = round(value / step)
    if code < grid.qmin - zero_point:
        return grid.qmin - zero_point
    if code > grid.qmax - zero_point:
        return grid.qmax - zero_point
    return code - value / step


# --- learned steps and clips ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.3, 1 - 0.6), (-0.4, -1 + 0.8), (9.0, 6), (-5.0, -1)],
    ids=["inside", "inside, negative", "above", "below"],
)
def test_gradient_of_the_step(value: float, expected: float) -> None:
    """Step 0.5, codes 0..7 with zero point 1: -0.5 to 3."""
    quantizer = plain(-0.5, 3.0)
    assert (quantizer.scale.item(), quantizer.zero_point.item()) == (0.5, 1)
    found = gradient(LSQ(quantizer, scaled=False), torch.tensor([value]))
    assert found.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
def test_gradient_of_the_steps_of_channels(symmetric: bool) -> None:
    quantizer = per_channel(symmetric=symmetric)
    slopes = torch.randn_like(WEIGHT)
    found = gradient(LSQ(quantizer, scaled=False), WEIGHT, slopes)
    assert found.shape == (4, 1, 1, 1)
    for channel in range(4):
        step, zero = quantizer.scale[channel].item(), quantizer.zero_point[channel].item()
        pairs = zip(WEIGHT[channel].flatten().tolist(), slopes[channel].flatten(), strict=True)
        expected = sum(lsq_slope(v, step, zero, quantizer.grid) * float(g) for v, g in pairs)
        assert found[channel].item() == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_clipped_values_pass_no_gradient() -> None:
    values = torch.tensor([-5.0, 0.3, 3.2, 9.0], requires_grad=True)
    LSQ(plain(-0.5, 3.0))(values).sum().backward()
    assert values.grad is not None and values.grad.tolist() == [0, 1, 1, 0]


def test_scaled_gradient_of_a_weight_counts_the_values_of_a_step() -> None:
    """4 channels of 27 weights, codes to 7."""
    channels = per_channel()
    whole = gradient(LSQ(channels, scaled=False), WEIGHT)
    torch.testing.assert_close(gradient(LSQ(channels), WEIGHT), whole / (27 * 7) ** 0.5)
    tensor = plain(-1.0, 1.0)
    whole = gradient(LSQ(tensor, scaled=False), WEIGHT)
    torch.testing.assert_close(gradient(LSQ(tensor), WEIGHT), whole / (108 * 7) ** 0.5)
    given = gradient(LSQ(tensor, elements=5), WEIGHT)
    torch.testing.assert_close(given, whole / (5 * 7) ** 0.5)


def test_scaled_gradient_of_an_activation_does_not_count_the_batch() -> None:
    quantizer = plain(0.0, 1.0)
    values = torch.randn(10, 2, 5, 3)
    whole = gradient(LSQ(quantizer, scaled=False), values)
    found = gradient(LSQ(quantizer, activation=True), values)
    torch.testing.assert_close(found, whole / (30 * 7) ** 0.5)


@pytest.mark.parametrize("symmetric", [False, True])
def test_gradient_of_the_clip_is_that_of_the_step_over_qmax(symmetric: bool) -> None:
    quantizer = per_channel(symmetric=symmetric)
    clip = LSQ(quantizer, learn="clip", scaled=False)
    assert [name for name, _ in clip.named_parameters()] == ["clip"]
    torch.testing.assert_close(clip.clip.detach(), quantizer.scale * quantizer.grid.qmax)
    torch.testing.assert_close(clip.step().detach(), quantizer.scale)
    expected = gradient(LSQ(quantizer, scaled=False), WEIGHT) / quantizer.grid.qmax
    torch.testing.assert_close(gradient(clip, WEIGHT), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("learn", "rate"), [("step", 1e-2), ("clip", 1e-1)])
def test_a_step_stays_positive_and_grows_back(learn: Any, rate: float) -> None:
    values = torch.rand(256, generator=torch.Generator().manual_seed(0))
    lsq = LSQ(plain(0.0, 1.0), learn=learn, scaled=False)
    lsq.learned.grad = torch.full_like(lsq.learned, 1e6)
    optimizer = torch.optim.SGD(lsq.parameters(), lr=rate)
    optimizer.step()
    assert lsq.learned.item() < -1000
    outputs = lsq(values)
    assert 0.99e-8 < lsq.step().item() < 1.01e-8
    assert outputs.isfinite().all() and (outputs >= 0).all()
    for _ in range(500):
        loss = F.mse_loss(lsq(values), values)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert lsq.step().item() == pytest.approx(1 / 7, rel=0.1)


def test_one_quantizer_may_be_used_twice_before_the_backward_pass() -> None:
    lsq = LSQ(plain(0.0, 1.0), scaled=False)
    (lsq(torch.ones(2)).sum() + lsq(torch.full((3,), 5.0)).sum()).backward()
    assert lsq.scale.grad is not None
    assert lsq.scale.grad.item() == pytest.approx(3 * 7, abs=1e-4)


def test_a_range_is_needed() -> None:
    with pytest.raises(ValueError, match="calibrate first"):
        LSQ(Quantizer(Grid(4)))
    with pytest.raises(ValueError, match="calibrate first"):
        PACT(Quantizer(Grid(4)))


# --- ranges that follow the weight ----------------------------------------------------------------


def test_the_range_follows_the_weight() -> None:
    quantizer = Quantizer(Grid(4), axis=0)
    followed = FollowedRange(quantizer)
    for factor in (1.0, 3.0, 0.2):
        weight = WEIGHT * factor
        quantizer.fit(weight)
        assert torch.equal(followed(weight), quantizer(weight))
    assert not list(followed.parameters())


def test_every_weight_passes_its_gradient() -> None:
    """The extremes round to codes outside where the zero point was rounded towards them."""
    weight = torch.tensor([[-0.35, 0.1, 1.0]], requires_grad=True)
    followed = FollowedRange(Quantizer(Grid(2), axis=0))
    slopes = torch.tensor([[1.0, 2.0, 3.0]])
    rounded = followed(weight)
    (rounded * slopes).sum().backward()
    assert weight.grad is not None and torch.equal(weight.grad, slopes)
    with torch.no_grad():
        assert torch.equal(followed(weight), rounded)
    wide = WEIGHT.clone().requires_grad_()
    Quantizer.forward(followed, wide * 100).sum().backward()
    assert wide.grad is not None and (wide.grad == 100).all()


# --- PACT -----------------------------------------------------------------------------------------


def test_pact_by_hand() -> None:
    """alpha 1.5 in 3 steps of 0.5."""
    pact = PACT(plain(0.0, 1.5, bits=2))
    values = torch.tensor([-1.0, 0.0, 0.2, 0.3, 1.3, 1.5, 4.0], requires_grad=True)
    slopes = torch.tensor([1.0, 2, 3, 4, 5, 6, 7])
    outputs = pact(values)
    assert outputs.tolist() == [0, 0, 0, 0.5, 1.5, 1.5, 1.5]
    (outputs * slopes).sum().backward()
    assert pact.alpha.grad is not None and pact.alpha.grad.item() == 6 + 7
    assert values.grad is not None and values.grad.tolist() == [0, 2, 3, 4, 5, 0, 0]
    assert pact.decay().item() == 1.5**2
    pact.decay().backward()
    assert pact.alpha.grad.item() == 6 + 7 + 2 * 1.5


def test_pact_starts_where_it_is_told_and_stays_positive() -> None:
    pact = PACT(plain(0.0, 1.5), alpha0=10.0)
    assert pact.alpha.item() == 10
    pact.alpha.data.fill_(-3.0)
    assert torch.isfinite(pact(torch.randn(5))).all()
    assert 0 < pact.step().item() < 1.01e-8
    with pytest.raises(ValueError, match="positive"):
        PACT(plain(0.0, 1.5), alpha0=0.0)


@pytest.mark.parametrize("symmetric", [False, True])
def test_pact_refuses_negative_values(symmetric: bool) -> None:
    with pytest.raises(ValueError, match="zero point 0"):
        PACT(plain(-1.0, 1.0, symmetric=symmetric))
    PACT(plain(0.0, 1.0, symmetric=True, signed=False))


# --- forward values, and writing back -------------------------------------------------------------

VALUES = st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=30).map(torch.tensor)
GRIDS = st.builds(Grid, st.integers(2, 8), symmetric=st.booleans(), signed=st.booleans())


@settings(deadline=None)
@given(VALUES, GRIDS, st.floats(-4, 0), st.floats(0.01, 4), st.sampled_from(["step", "clip"]))
def test_lsq_computes_what_fake_quantize_does(
    values: Tensor, grid: Grid, low: float, high: float, learn: Any
) -> None:
    quantizer = Quantizer(grid)
    quantizer.set_range(torch.tensor(low), torch.tensor(high))
    lsq = LSQ(quantizer, learn=learn)
    step = lsq.step().detach()
    torch.testing.assert_close(step, quantizer.scale, rtol=1e-6, atol=0)
    if learn == "step":
        assert torch.equal(step, quantizer.scale)
    assert torch.equal(lsq(values), fake_quantize(values, step, quantizer.zero_point, grid))
    assert_settles(lsq, values, grid)


@settings(deadline=None)
@given(VALUES, st.integers(2, 8), st.floats(0.01, 4))
def test_pact_computes_what_fake_quantize_does(values: Tensor, bits: int, high: float) -> None:
    quantizer = plain(0.0, high, bits)
    pact = PACT(quantizer)
    clipped = values.clamp(0, pact.alpha.item())
    expected = fake_quantize(clipped, pact.step().detach(), torch.tensor(0.0), quantizer.grid)
    assert torch.equal(pact(values), expected)
    assert_settles(pact, values, quantizer.grid)


@settings(deadline=None)
@given(VALUES, GRIDS)
def test_a_followed_range_computes_what_a_fitted_quantizer_does(values: Tensor, grid: Grid) -> None:
    quantizer = Quantizer(grid)
    followed = FollowedRange(quantizer)
    quantizer.fit(values)
    assert torch.equal(followed(values), quantizer(values))
    assert_settles(followed, values, grid)


def assert_settles(module: LSQ | PACT | FollowedRange, values: Tensor, grid: Grid) -> None:
    """A plain quantizer computes the same to the last bit, also where gradients are recorded."""
    target = Quantizer(grid, ste="full" if isinstance(module, FollowedRange) else "clipped")
    if not isinstance(module, FollowedRange):
        module.learned.data.mul_(0.737)
    recorded = values.clone().requires_grad_()
    expected = module(recorded)
    module.settle(target, values)
    assert not target.scale.requires_grad
    assert torch.equal(target(values), expected)
    assert torch.equal(target(recorded), expected)


def test_settled_ranges_do_not_change_with_what_was_learned() -> None:
    target, lsq = per_channel(), LSQ(per_channel())
    lsq.settle(target)
    before = target.scale.clone()
    lsq.scale.data.mul_(2)
    assert torch.equal(target.scale, before)


def test_a_followed_range_settles_on_the_weight_as_it_is_now() -> None:
    target, expected = Quantizer(Grid(4), axis=0), Quantizer(Grid(4), axis=0)
    followed = FollowedRange(target)
    followed(WEIGHT)
    followed.settle(target, WEIGHT * 2)
    expected.fit(WEIGHT * 2)
    assert torch.equal(target.scale, expected.scale)
    assert torch.equal(target.zero_point, expected.zero_point)
    with pytest.raises(ValueError, match="needs the weight"):
        followed.settle(target)
