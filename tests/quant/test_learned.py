from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from datafree.quant.grid import Grid, fake_quantize
from datafree.quant.learned import (
    LearnedStep,
    ScaledCodes,
    SoftRounding,
    chosen,
    mix,
    rounding_logits,
)
from datafree.quant.modules import ActivationQuantizer, Quantizer

WEIGHT = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))


def fitted(weight: Tensor, bits: int, *, symmetric: bool = False) -> Quantizer:
    quantizer = Quantizer(Grid(bits, symmetric=symmetric), axis=0)
    quantizer.fit(weight)
    return quantizer


@settings(deadline=None)
@given(st.lists(st.floats(0, 0.999), min_size=1, max_size=20))
def test_logits_give_the_remainders(remainders: list[float]) -> None:
    r = torch.tensor(remainders, dtype=torch.float64)
    stretched = 1.2 / (1 + torch.exp(-rounding_logits(r))) - 0.1
    torch.testing.assert_close(stretched, r, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_soft_rounding_starts_as_the_float_weight(bits: int, symmetric: bool) -> None:
    quantizer = fitted(WEIGHT, bits, symmetric=symmetric)
    soft = SoftRounding(WEIGHT, quantizer)(WEIGHT)
    grid = quantizer.grid
    low = (grid.qmin - quantizer.zero_point) * quantizer.scale
    high = (grid.qmax - quantizer.zero_point) * quantizer.scale
    expected = torch.minimum(torch.maximum(WEIGHT, low), high)
    torch.testing.assert_close(soft, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 4])
def test_hard_rounding_starts_as_the_nearest_and_lies_on_the_grid(bits: int) -> None:
    quantizer = fitted(WEIGHT, bits)
    rounding = SoftRounding(WEIGHT, quantizer)
    hard = rounding.hard()
    torch.testing.assert_close(hard, quantizer(WEIGHT))
    with torch.no_grad():
        rounding.logits.copy_(torch.randn_like(rounding.logits) * 3)
    hard = rounding.hard()
    codes = quantizer.codes(hard)
    assert torch.equal(codes, codes.round())
    # Rounding a weight that lies on its grid changes nothing: every exporter sees its codes.
    torch.testing.assert_close(quantizer(hard), hard, rtol=1e-6, atol=1e-7)
    up = (rounding.logits >= 0).float()
    expected = (torch.floor(WEIGHT / quantizer.scale) + quantizer.zero_point + up).clamp(
        quantizer.grid.qmin, quantizer.grid.qmax
    )
    assert torch.equal(codes, expected)


def test_the_slope_of_the_step_is_the_integer_code() -> None:
    """Base integers are frozen: d w / d s is the code minus the zero point (Genie-M)."""
    quantizer = fitted(WEIGHT, 3)
    rounding = SoftRounding(WEIGHT, quantizer, learn_step=True)
    with torch.no_grad():
        rounding.logits.copy_(torch.where(rounding.logits >= 0, 50.0, -50.0))
    slopes = torch.randn_like(WEIGHT)
    (gradient,) = torch.autograd.grad((rounding(WEIGHT) * slopes).sum(), [rounding.scale])
    integers = (quantizer.codes(WEIGHT) - quantizer.zero_point) * slopes
    torch.testing.assert_close(gradient, integers.sum((1, 2, 3), keepdim=True))
    fixed = SoftRounding(WEIGHT, quantizer)
    assert [name for name, _ in fixed.named_parameters()] == ["logits"]


def test_undecided_weights_are_more_than_a_twentieth_of_a_step_from_both_sides() -> None:
    weight = torch.tensor([0.0, 0.04, 0.06, 0.5, 0.94, 0.96, 7.02, 7.3]).view(8, 1, 1, 1)
    quantizer = fitted(weight, 4)
    quantizer.scale = torch.ones_like(quantizer.scale)
    rounding = SoftRounding(weight, quantizer)
    assert rounding.undecided() == 4
    with torch.no_grad():
        rounding.logits.copy_(torch.where(rounding.logits >= 0, 50.0, -50.0))
    assert rounding.undecided() == 0


def test_penalty() -> None:
    rounding = SoftRounding(WEIGHT, fitted(WEIGHT, 4))
    shares = rounding.shares().detach().double()
    for beta in (2.0, 7.5, 20.0):
        expected = sum(1 - abs(2 * float(h) - 1) ** beta for h in shares.flatten())
        assert rounding.penalty(beta).item() == pytest.approx(expected, rel=1e-4)
    with torch.no_grad():
        rounding.logits.copy_(torch.where(rounding.logits >= 0, 50.0, -50.0))
    assert rounding.penalty(2.0).item() == 0


@pytest.mark.parametrize("beta", [1.0, 2.0, 7.5, 20.0])
def test_the_gradient_of_the_penalty(beta: float) -> None:
    """``-2 beta sign(2h - 1) |2h - 1|^(beta - 1)`` times the slope of h, also of a half itself."""
    rounding = SoftRounding(WEIGHT, fitted(WEIGHT, 4))
    with torch.no_grad():
        rounding.logits.copy_(torch.linspace(-2, 2, WEIGHT.numel()).view_as(WEIGHT))
        rounding.logits.view(-1)[0] = 0.0
    (found,) = torch.autograd.grad(rounding.penalty(beta), [rounding.logits])
    assert bool(torch.isfinite(found).all())
    logits = rounding.logits.detach().double()
    spread = 2.4 * torch.sigmoid(logits) - 1.2  # 2h - 1 where h is not cut off
    slope = 2.4 * torch.sigmoid(logits) * (1 - torch.sigmoid(logits))
    expected = -beta * spread.sign() * spread.abs() ** (beta - 1) * slope
    torch.testing.assert_close(
        found.view(-1)[1:].double(), expected.view(-1)[1:], rtol=1e-3, atol=1e-5
    )


def activation(bits: int = 3) -> ActivationQuantizer:
    quantizer = ActivationQuantizer(Grid(bits))
    quantizer.set_range(torch.tensor(-0.5), torch.tensor(2.0))
    return quantizer


def test_a_learned_step_is_the_quantizer_it_started_from() -> None:
    values = torch.randn(8, 3, 4, 4)
    learned = LearnedStep(activation(), 0.0, torch.Generator())
    torch.testing.assert_close(learned(values), activation()(values))


def test_the_gradient_of_the_step_is_that_of_lsq() -> None:
    """``round(v/s) - v/s`` inside, the clipped integer outside (B.9)."""
    quantizer = activation()
    learned = LearnedStep(quantizer, 0.0, torch.Generator())
    values = torch.randn(200) * 2
    (gradient,) = torch.autograd.grad(learned(values).sum(), [learned.scale])
    total = 0.0
    s, z = quantizer.scale.item(), quantizer.zero_point.item()
    for v in values.tolist():
        ratio = v / s
        if round(ratio) < -z:
            total += -z
        elif round(ratio) > 7 - z:
            total += 7 - z
        else:
            total += round(ratio) - ratio
    assert gradient.item() == pytest.approx(total, rel=1e-4, abs=1e-3)


def test_dropped_elements_stay_float() -> None:
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(64, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    learned = LearnedStep(activation(2), 0.3, generator)
    result = learned(values)
    same, quantized = result == values, result == activation(2)(values)
    assert (same | quantized).all()
    assert same.float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert result.is_contiguous(memory_format=torch.channels_last)
    again = learned(values)
    assert not torch.equal(result, again)


def test_mix() -> None:
    generator = torch.Generator().manual_seed(0)
    ones, zeros = torch.ones(10_000), torch.zeros(10_000)
    assert mix(ones, zeros, 0.0, generator) is ones
    assert mix(ones, zeros, 0.8, generator).mean().item() == pytest.approx(0.2, abs=0.02)


def test_steps_stay_positive() -> None:
    learned = LearnedStep(activation(), 0.0, torch.Generator())
    rounding = SoftRounding(WEIGHT, fitted(WEIGHT, 4), learn_step=True)
    with torch.no_grad():
        learned.scale.fill_(-1.0)
        rounding.scale.fill_(-1.0)
    assert (learned.step() > 0).all()
    assert (rounding.step() > 0).all()


def test_partly_dropped_gradients_are_those_of_the_parts() -> None:
    """Autograd through `fake_quantize` and `where` with the same mask."""
    values = (torch.randn(3, 4, 5, 5) * 2).requires_grad_()
    slopes = torch.randn(3, 4, 5, 5)
    learned = LearnedStep(activation(), 0.4, torch.Generator().manual_seed(5))
    found = torch.autograd.grad((learned(values) * slopes).sum(), [values, learned.scale])
    kept = chosen(values, 0.6, torch.Generator().manual_seed(5)).bool()
    whole = fake_quantize(values, learned.scale, learned.zero_point, learned.grid)
    loss = (torch.where(kept, whole, values) * slopes).sum()
    expected = torch.autograd.grad(loss, [values, learned.scale])
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_chosen_shares(share: float) -> None:
    like = torch.empty(16, 9, 15, 15).contiguous(memory_format=torch.channels_last)
    mask = chosen(like, share, torch.Generator().manual_seed(1))
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert mask.stride() == like.stride()
    assert mask.mean().item() == pytest.approx(share, abs=0.01)
    # Every channel by itself too: bits of one random number are independent.
    assert (mask.mean((0, 2, 3)) - share).abs().max() < 0.03
    flat = mask.permute(0, 2, 3, 1).flatten()[: 8 * (mask.numel() // 8)].view(-1, 8)
    if 0 < share < 1:
        assert (torch.corrcoef(flat.T) - torch.eye(8)).abs().max() < 0.07


@pytest.mark.parametrize("drop", [0.0, 0.4])
def test_a_learned_step_clips_first_where_its_quantizer_does(drop: float) -> None:
    """Against autograd through the formula, with the same mask."""
    values = (torch.randn(3, 4, 5, 5) * 2).requires_grad_()
    slopes = torch.randn(3, 4, 5, 5)
    quantizer = activation(2)
    quantizer.ste = "clip_first"
    learned = LearnedStep(quantizer, drop, torch.Generator().manual_seed(5))
    found = torch.autograd.grad((learned(values) * slopes).sum(), [values, learned.scale])
    kept = chosen(values, 1 - drop, torch.Generator().manual_seed(5)).bool()
    low = -quantizer.zero_point.item()
    clipped = torch.clamp(values / learned.scale, low, low + 3)
    whole = (clipped + (torch.round(clipped) - clipped).detach()) * learned.scale
    loss = (torch.where(kept, whole, values) * slopes).sum()
    expected = torch.autograd.grad(loss, [values, learned.scale])
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-4)


def test_steps_in_a_unit_learn_as_in_front_of_the_norm() -> None:
    """W' = a W under Adam at one rate: steps and roundings stay in proportion, step by step."""
    slopes = torch.tensor([0.1, 0.7, 3.0, 1.5]).view(-1, 1, 1, 1)
    assert len(WEIGHT) == len(slopes)
    plain, scaled = fitted(WEIGHT, 3), fitted(slopes * WEIGHT, 3)
    before = SoftRounding(WEIGHT, plain, learn_step=True)
    after = SoftRounding(slopes * WEIGHT, scaled, learn_step=True, unit=slopes)
    without = SoftRounding(slopes * WEIGHT, scaled, learn_step=True)
    target = 1.3 * WEIGHT
    for rounding, factor in ((before, slopes), (after, 1.0), (without, 1.0)):
        optimizer = torch.optim.Adam(rounding.parameters(), lr=1e-2)
        for _ in range(20):
            loss = (factor * rounding(WEIGHT) - slopes * target).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.testing.assert_close(after.step(), slopes * before.step(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(after.logits, before.logits, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(without.step(), after.step(), rtol=1e-2)


def test_codes_stay_and_the_step_learns() -> None:
    quantizer = Quantizer(Grid(3))
    quantizer.set_range(torch.tensor(-1.0), torch.tensor(2.5))
    weight = quantizer(torch.tensor([-1.0, 0.1, 0.4, 2.6]))
    learned = ScaledCodes(weight, quantizer)
    torch.testing.assert_close(learned(weight), torch.tensor([-1.0, 0.0, 0.5, 2.5]))
    (slope,) = torch.autograd.grad(learned(weight).sum(), [learned.factor])
    assert float(slope) == pytest.approx(2.0)
    with torch.no_grad():
        learned.factor.fill_(2.0)
    torch.testing.assert_close(learned.hard(), torch.tensor([-2.0, 0.0, 1.0, 5.0]))
    with torch.no_grad():
        learned.factor.fill_(-1.0)
    assert float(learned.step().detach()) > 0


@pytest.mark.parametrize(
    ("share", "each"), [(0.5, 8), (1 / 256, 8), (255 / 256, 8), (1 / 512, 16), (0.3, 16)]
)
def test_choices_share_numbers_of_64_bits(share: float, each: int) -> None:
    """Eight or four at a time: as bytes, or pairs of them, below the share of what these can be."""
    found = chosen(torch.empty(100, 10), share, random := torch.Generator().manual_seed(3))
    other = torch.Generator().manual_seed(3)
    words = torch.empty(1000 * each // 64, dtype=torch.int64).random_(
        -(2**63), None, generator=other
    )
    drawn = words.view(torch.int8 if each == 8 else torch.int16)[:1000].double()
    shares = drawn / 2**each + 0.5  # from 0 to 1
    nearest = share if each == 8 else round(share * 2**16) / 2**16
    assert torch.equal(found.flatten(), (shares < nearest).float())
    assert torch.equal(random.get_state(), other.get_state())


def test_words_are_drawn_for_what_is_left_too() -> None:
    random, other = (torch.Generator().manual_seed(0) for _ in range(2))
    assert chosen(torch.empty(9), 0.5, random).shape == (9,)
    torch.empty(2, dtype=torch.int64).random_(-(2**63), None, generator=other)
    assert torch.equal(random.get_state(), other.get_state())
