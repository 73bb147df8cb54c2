from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from datafree.calibrators.kl import KL, divergences
from datafree.config import build
from datafree.errors import ConfigError
from datafree.quant.grid import Grid


def smoothed(distribution: list[float]) -> list[float]:
    """1e-4 of the mass moved to the empty bins, in equal parts."""
    total, empty = sum(distribution), distribution.count(0)
    if not empty:
        return [part / total for part in distribution]
    return [(1 - 1e-4) * part / total if part else 1e-4 / empty for part in distribution]


def by_loops(counts: list[float], start: int, stop: int, groups: int) -> float:
    """B.2.5 bin by bin."""
    size = stop - start
    p = counts[start:stop]
    p[0] += sum(counts[:start])
    p[-1] += sum(counts[stop:])
    q = [0.0] * size
    for group in range(groups):
        members = [i for i in range(size) if i * groups // size == group]
        filled = [i for i in members if p[i] > 0]
        for i in filled:
            q[i] = sum(counts[start + j] for j in members) / len(filled)
    if 2 * sum(counts[start:stop]) < sum(counts):
        return math.inf
    return sum(a * math.log(a / b) for a, b in zip(smoothed(p), smoothed(q), strict=True))


def histogram(kind: str, bins: int, seed: int = 0) -> list[float]:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(30 * np.exp(-(((np.arange(bins) - bins // 2) / (bins / 6)) ** 2)))
    if kind == "sparse":
        counts *= rng.random(bins) < 0.3
    if kind == "gap":
        counts[bins // 2 + 5 : -1] = 0
        counts[-1] = 2
    if kind == "no tail":
        counts[: bins // 2 - 4] = 0
    if kind == "far":
        counts[: bins // 2 + 3] = 0
    return [float(count) for count in counts]


@pytest.mark.parametrize("kind", ["dense", "sparse", "gap", "no tail", "far"])
@pytest.mark.parametrize("groups", [3, 7, 15])
def test_every_window_by_loops(kind: str, groups: int) -> None:
    counts = histogram(kind, 61)
    middle = len(counts) // 2
    both = [(middle - i, middle + i + 1) for i in range(groups // 2, middle + 1)]
    positive = [(0, stop) for stop in range(groups, len(counts) + 1)]
    windows = both + positive
    expected = [by_loops(counts, start, stop, groups) for start, stop in windows]
    starts, stops = (torch.tensor(ends) for ends in zip(*windows, strict=True))
    found = divergences(torch.tensor(counts, dtype=torch.float64), starts, stops, groups)
    assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert min(expected) >= -1e-12


def test_by_hand() -> None:
    """Four filled bins in two groups: Q is the mean of each pair; nothing is outside."""
    counts = torch.tensor([1.0, 3.0, 2.0, 2.0], dtype=torch.float64)
    whole = divergences(counts, torch.tensor([0]), torch.tensor([4]), 2)
    expected = 1 / 8 * math.log(1 / 2) + 3 / 8 * math.log(3 / 2)
    assert whole.item() == pytest.approx(expected)
    # The first two bins alone: P holds the four values outside, Q does not.
    part = divergences(counts, torch.tensor([0]), torch.tensor([2]), 2)
    expected = 1 / 8 * math.log((1 / 8) / (1 / 4)) + 7 / 8 * math.log((7 / 8) / (3 / 4))
    assert part.item() == pytest.approx(expected)


def test_the_last_bin_of_a_window_counts() -> None:
    """MXNet's last group stops one bin early: its Q has no mass there."""
    counts = torch.tensor([4.0, 4.0, 4.0, 4.0], dtype=torch.float64)
    assert divergences(counts, torch.tensor([0]), torch.tensor([4]), 2).item() == pytest.approx(0)


def reach(calibrator: KL, values: Tensor, grid: Grid) -> tuple[float, float]:
    low, high = calibrator.range(calibrator.update(None, values), grid)
    return low.item(), high.item()


def uniform(count: int, low: float = 0.0) -> Tensor:
    steps = torch.arange(count) / count
    return low + (1 - low) * steps


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_a_uniform_distribution_keeps_its_range(bits: int) -> None:
    assert reach(KL(), uniform(100_000), Grid(bits)) == (0, pytest.approx(1, abs=0.01))
    assert reach(KL(), uniform(100_000, -1), Grid(bits)) == pytest.approx((-1, 1), abs=0.02)


def test_values_far_from_zero_are_not_clipped_to_their_first_bin() -> None:
    """P and Q of a window with one filled bin are equal."""
    assert reach(KL(), 2 + uniform(100_000), Grid(8))[1] == pytest.approx(3, abs=0.03)


@pytest.mark.parametrize("sides", ["auto", "both", "positive"])
def test_outliers_are_clipped(sides: str) -> None:
    values = torch.cat((uniform(100_000), torch.full((3,), 40.0)))
    assert 1 <= reach(build(KL, {"sides": sides}, "kl"), values, Grid(4))[1] < 3
    low, high = reach(build(KL, {"sides": sides}, "kl"), torch.cat((values, -values)), Grid(4))
    assert high == pytest.approx(-low)
    assert 1 <= high < 4


@pytest.mark.parametrize(
    ("grid", "sides", "groups"),
    [
        (Grid(4), "auto", 15),
        (Grid(4, symmetric=True), "auto", 7),
        (Grid(4, symmetric=True, signed=False), "auto", 15),
        (Grid(4), "both", 15),
        (Grid(4, symmetric=True), "both", 15),
    ],
    ids=str,
)
@pytest.mark.parametrize("zeros", [False, True])
def test_never_negative_values_by_loops(grid: Grid, sides: str, groups: int, zeros: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(3000, generator=generator).relu()
    calibrator = build(KL, {"sides": sides, "bins": 512, "zeros": zeros}, "kl")
    state = calibrator.update(None, values)
    counts, width = state.one_sided(512) if sides == "auto" else state.two_sided(512)
    plain, middle = counts.tolist(), len(counts) // 2 if sides == "both" else 0
    plain[middle] += state.zeros * zeros
    best, threshold = math.inf, 0.0
    if sides == "both":
        tried = [(middle - i, middle + i + 1, i + 0.5) for i in range(groups // 2, middle + 1)]
    else:
        tried = [(0, i, float(i)) for i in range(groups, len(plain) + 1)]
    for start, stop, end in tried:
        divergence = by_loops(plain, start, stop, groups)
        if divergence <= best:
            best, threshold = divergence, end * width
    low, high = calibrator.range(state, grid)
    assert low == 0
    assert high.item() == pytest.approx(min(threshold, values.max().item()), rel=1e-6)


def test_zeros_decide_the_search_where_they_are_counted() -> None:
    """Half of a ReLU's outputs are 0, which no grid rounds: counted, they ruin even 8 bits."""
    values = torch.randn(50_000, generator=torch.Generator().manual_seed(0)).relu()
    assert reach(KL(), values, Grid(8))[1] > 0.75 * values.max()
    assert reach(KL(zeros=True), values, Grid(8))[1] < 0.6 * values.max()


def test_magnitudes_of_values_of_both_signs_share_the_codes() -> None:
    """An affine grid of 15 steps has 7 on either side: the same search as a signed grid's."""
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    calibrator = KL(sides="positive")
    affine = reach(calibrator, values, Grid(4))
    assert affine == reach(calibrator, values, Grid(4, symmetric=True))
    assert affine[0] == -affine[1]
    assert affine[1] < values.abs().max()


def test_the_window_is_cut_to_the_extremes() -> None:
    values = torch.cat((uniform(10_000), torch.full((100,), -0.25)))
    assert reach(KL(), values, Grid(8)) == (-0.25, pytest.approx(1, abs=0.02))


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-38])
@pytest.mark.parametrize("sides", ["auto", "both", "positive"])
def test_one_value(value: float, sides: str) -> None:
    found = reach(build(KL, {"sides": sides}, "kl"), torch.full((5,), value), Grid(8))
    assert found == (pytest.approx(min(value, 0)), pytest.approx(max(value, 0)))


@pytest.mark.parametrize("options", [{"bins": 511}, {"bins": 8193}, {"sides": "left"}])
def test_out_of_range(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        build(KL, options, "kl")
