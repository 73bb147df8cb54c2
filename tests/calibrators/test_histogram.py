from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from datafree.calibrators import _histogram
from datafree.calibrators._histogram import Histogram, extend

BINS = 4096


def draw(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def grown(parts: list[Tensor]) -> Histogram:
    histogram = None
    for part in parts:
        histogram = extend(histogram, part)
    assert histogram is not None
    return histogram


PARTS = {
    "widening": [draw(500) * 0.01, draw(500, 1), draw(500, 2) * 40],
    "upwards": [draw(500).abs(), draw(500, 1).abs() + 30],
    "downwards": [draw(500).abs(), -draw(500, 1).abs() - 30],
    "narrowing": [draw(500) * 9, draw(500, 1)],
    "constant first": [torch.zeros(100), draw(500).abs()],
    "constant later": [draw(500), torch.full((100,), 3.5)],
}


@pytest.mark.parametrize("name", list(PARTS))
def test_growing_equals_counting_at_once(name: str) -> None:
    histogram, values = grown(PARTS[name]), torch.cat(PARTS[name])
    assert histogram.counts.sum() == len(values)
    assert histogram.sums.sum().item() == pytest.approx(values.double().sum().item(), rel=1e-9)
    assert histogram.smallest == values.min()
    assert histogram.largest == values.max()
    assert histogram.low <= values.min()
    assert histogram.high >= values.max()
    width = (histogram.high - histogram.low) / BINS
    assert width * BINS <= 4 * (values.max() - values.min())
    # Cumulative counts at the edges: exact up to values that sit within rounding of an edge.
    edges = histogram.low + width * torch.arange(1, BINS + 1, dtype=torch.float64)
    ordered = values.double().sort().values
    least = torch.searchsorted(ordered, edges - width * 0.01)
    most = torch.searchsorted(ordered, edges + width * 0.01, right=True)
    cumulative = histogram.counts.cumsum(0)
    assert (least <= cumulative).all()
    assert (cumulative <= most).all()


@pytest.mark.parametrize("name", list(PARTS))
def test_quantiles_after_growing_are_within_a_bin(name: str) -> None:
    histogram, values = grown(PARTS[name]), torch.cat(PARTS[name]).double()
    width = (histogram.high - histogram.low) / BINS
    for share in (0.0, 0.01, 0.3, 0.5, 0.9, 0.999, 1.0):
        below = values.quantile(share, interpolation="lower").item()
        above = values.quantile(share, interpolation="higher").item()
        index = int(share * (len(values) - 1))
        neighbours = values.sort().values[[max(index - 1, 0), min(index + 2, len(values) - 1)]]
        quantile = histogram.quantile(share)
        assert min(below, float(neighbours[0])) - width <= quantile
        assert quantile <= max(above, float(neighbours[1])) + width


def test_means_are_those_of_the_values_in_a_bin() -> None:
    histogram = extend(None, torch.tensor([0.0, 0.0001, 0.0002, 1.0, 4.0]))
    assert histogram.means.tolist() == pytest.approx([0.0001, 1.0, 4.0])
    assert histogram.weights.tolist() == [3, 1, 1]


def counted_together(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by how many values are counted, whenever some are."""
    sizes: list[int] = []
    counted = torch.bincount

    def bincount(bins: Tensor, **given: Any) -> Tensor:
        sizes.append(len(bins))
        return counted(bins, **given)

    monkeypatch.setattr(torch, "bincount", bincount)
    return sizes


@pytest.mark.parametrize("shape", [(7, 3, 5, 5), (40,), ()])
def test_values_counted_in_parts_are_those_counted_at_once(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit: sums are taken one by one in the order of the values."""
    values = draw(torch.Size(shape).numel()).view(shape)
    if values.ndim == 4:
        values = values.contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(_histogram, "_CHUNK", 80)
    sizes = counted_together(monkeypatch)
    found = extend(None, values)
    monkeypatch.undo()
    assert max(sizes) <= 80
    assert sum(sizes) == values.numel()
    flat = values.flatten()
    bins = ((flat - found.low) * (BINS / (found.high - found.low))).long().clamp(0, BINS - 1)
    assert torch.equal(found.counts, torch.bincount(bins, minlength=BINS).double())
    assert torch.equal(found.sums, torch.bincount(bins, weights=flat.double(), minlength=BINS))


def test_a_million_values_are_counted_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """2^21 + 3 numbers are two parts of 2^20 and one of 3; rows of 2^18 are taken four by four."""
    sizes = counted_together(monkeypatch)
    extend(None, torch.linspace(0, 1, 2**21 + 3))
    assert sizes == [2**20, 2**20, 3]
    sizes.clear()
    extend(None, torch.linspace(0, 1, 6 * 2**18).view(6, 2**18))
    assert sizes == [2**20, 2**19]


@pytest.mark.parametrize("middle", [0.0, 3.0])
@pytest.mark.parametrize("reach", [0.01, 5.0])
def test_values_of_ordinary_size_are_counted_in_float32(middle: float, reach: float) -> None:
    """As many bins of float64 would differ for some of so many values."""
    inside = torch.rand(200_000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    values = middle + reach * torch.cat([torch.tensor([-1.0, 1.0]), inside])
    found = extend(None, values)
    bins = ((values - found.low) * (BINS / (found.high - found.low))).long().clamp(0, BINS - 1)
    assert torch.equal(found.counts, torch.bincount(bins, minlength=BINS).double())
    exact = (values.double() - found.low) * (BINS / (found.high - found.low))
    assert not torch.equal(bins, exact.long().clamp(0, BINS - 1))


def test_the_range_is_that_of_the_values_until_one_lies_outside() -> None:
    first = extend(None, torch.tensor([0.0, 1.0]))
    assert (first.low, first.high) == (0.0, 1.0)
    same = extend(first, torch.tensor([0.0, 0.5, 1.0]))
    assert (same.low, same.high) == (0.0, 1.0)
    above = extend(first, torch.tensor([0.0, 1.5]))
    assert (above.low, above.high) == (0.0, 2.0)
    below = extend(first, torch.tensor([-0.5, 1.0]))
    assert (below.low, below.high) == (-1.0, 1.0)


@pytest.mark.parametrize(("value", "high"), [(0.0, 1e-6), (-3.0, -3 + 4e-6), (1e5, 1e5 + 0.1)])
def test_one_value_has_a_narrow_range(value: float, high: float) -> None:
    histogram = extend(None, torch.full((7,), value))
    assert histogram.low == value
    assert histogram.high == pytest.approx(high, rel=1e-10)


def test_extending_leaves_the_old_histogram_alone() -> None:
    first = extend(None, draw(50))
    counts, sums = first.counts.clone(), first.sums.clone()
    extend(first, draw(50, 1))
    extend(first, draw(50, 2) * 100)
    assert torch.equal(first.counts, counts)
    assert torch.equal(first.sums, sums)


@pytest.mark.parametrize("value", [0.0, -3.0, 1e5])
def test_one_value(value: float) -> None:
    histogram = extend(None, torch.full((7,), value))
    assert histogram.quantile(0.5) == pytest.approx(value)
    assert histogram.means.tolist() == pytest.approx([value])


def held(counts: dict[int, float], smallest: float, largest: float) -> Histogram:
    """4096 bins of width 2 from 0 on."""
    whole = torch.zeros(4096, dtype=torch.float64)
    for place, count in counts.items():
        whole[place] = count
    return Histogram(0.0, 8192.0, whole, whole * 0, smallest, largest)


@pytest.mark.parametrize(
    ("share", "value"),
    [(0.0, 20.5), (0.25, 21.0), (0.5, 22.0), (0.75, 41.0), (0.875, 41.5), (1.0, 41.5)],
)
def test_quantiles_are_linear_within_a_bin_and_end_at_what_was_seen(
    share: float, value: float
) -> None:
    """Four values between 20 and 22, four between 40 and 42."""
    assert held({10: 4, 20: 4}, 20.5, 41.5).quantile(share) == pytest.approx(value, abs=1e-9)


def test_a_single_value_of_a_bin_lies_in_its_middle_and_a_share_of_one_at_its_end() -> None:
    assert held({10: 1}, 20.0, 22.0).quantile(0.5) == pytest.approx(21.0, abs=1e-9)
    assert held({10: 0.5}, 20.0, 22.0).quantile(1.0) == pytest.approx(21.0, abs=1e-9)


def test_quantiles_reach_the_last_bin() -> None:
    assert held({4095: 8}, 8190.0, 8192.0).quantile(0.5) == pytest.approx(8191.0, abs=1e-9)
    assert held({4095: 0.5}, 8190.0, 8192.0).quantile(1.0) == pytest.approx(8191.0, abs=1e-9)
