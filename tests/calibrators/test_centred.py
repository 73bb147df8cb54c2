from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from datafree.calibrators._centred import Centred, extend


def draw(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


PARTS = {
    "one": [draw(3000)],
    "widening": [draw(500) * 0.01, draw(500, 1), draw(500, 2) * 40],
    "upwards": [draw(500), draw(500, 1) + 30],
    "downwards": [draw(500), draw(500, 1) - 30],
    "never negative": [draw(500).relu(), draw(500, 1).relu() * 3],
    "zeros first": [torch.zeros(10), draw(500)],
}


def grown(parts: list[Tensor]) -> Centred:
    histogram = None
    for part in parts:
        histogram = extend(histogram, part)
    assert histogram is not None
    return histogram


def assert_counts(counts: Tensor, width: float, start: float, values: Tensor) -> None:
    """Cumulative counts agree with the sorted values, up to rounding at an edge."""
    edges = start + width * torch.arange(1, len(counts) + 1, dtype=torch.float64)
    ordered = values[values != 0].double().sort().values
    least = torch.searchsorted(ordered, edges - width * 0.01)
    most = torch.searchsorted(ordered, edges + width * 0.01, right=True)
    assert (least <= counts.cumsum(0)).all()
    assert (counts.cumsum(0) <= most).all()
    assert counts.sum() == (values != 0).sum()


@pytest.mark.parametrize("name", list(PARTS))
@pytest.mark.parametrize("bins", [512, 1001, 2048, 8192])
def test_magnitudes(name: str, bins: int) -> None:
    values = torch.cat(PARTS[name])
    counts, width = grown(PARTS[name]).one_sided(bins)
    assert 0.66 * bins <= len(counts) <= bins
    assert counts.dtype == torch.float64
    assert_counts(counts, width, 0, values.abs())
    assert counts[-2:].any()


@pytest.mark.parametrize("name", list(PARTS))
@pytest.mark.parametrize("bins", [512, 1001, 2048, 8192])
def test_both_sides(name: str, bins: int) -> None:
    values = torch.cat(PARTS[name])
    counts, width = grown(PARTS[name]).two_sided(bins)
    assert 0.66 * bins <= len(counts) <= bins
    assert len(counts) % 2 == 1
    assert_counts(counts, width, -width * len(counts) / 2, values)
    assert values.abs().max() <= width * len(counts) / 2


def test_exact_on_values_between_the_edges() -> None:
    """64 bins of width 1/8 to the largest magnitude 8, as numpy counts them."""
    values = (torch.arange(4096) % 1021 - 510) / 64 + 1 / 128
    values = torch.cat((values, torch.tensor([8.0, -8.0, 0.0])))
    counts, width = extend(None, values).one_sided(64)
    assert width == 0.125
    magnitudes = values[values != 0].abs().numpy()
    assert counts.tolist() == np.histogram(magnitudes, 64, (0, 8))[0].tolist()


def test_zeros_and_extremes() -> None:
    histogram = grown([torch.tensor([0.0, -0.0, 3.0]), torch.tensor([-7.0, 0.0])])
    assert histogram.zeros == 3
    assert histogram.counts.sum() == 2
    assert (histogram.smallest, histogram.largest, histogram.magnitude) == (-7, 3, 7)
    assert histogram.reach == 12


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-38, 5.0, -1e30])
def test_one_value(value: float) -> None:
    histogram = extend(None, torch.full((7,), value))
    for counts, width in (histogram.one_sided(512), histogram.two_sided(512)):
        assert counts.sum() == (7 if value else 0)
        assert width > 0


def test_extending_leaves_the_old_histogram_alone() -> None:
    first = extend(None, draw(50))
    counts = first.counts.clone()
    extend(first, draw(50, 1))
    extend(first, draw(50, 2) * 100)
    assert torch.equal(first.counts, counts)
