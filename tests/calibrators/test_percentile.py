from __future__ import annotations

import numpy as np
import pytest
import torch

from datafree.calibrators.percentile import Percentile
from datafree.config import build
from datafree.errors import ConfigError
from datafree.quant.grid import Grid


def values_of(kind: str, count: int = 40000) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    rng = np.random.default_rng(0)
    values = rng.laplace(size=count) if kind == "laplace" else rng.normal(2, 3, count)
    return (np.maximum(values, 0) if kind == "relu" else values).astype(np.float32)


@pytest.mark.parametrize("kind", ["laplace", "normal", "relu"])
@pytest.mark.parametrize("percentile", [99.99, 99.9, 99.0, 75.0])
@pytest.mark.parametrize("batches", [1, 7])
def test_within_a_bin_of_numpy(kind: str, percentile: float, batches: int) -> None:
    values = values_of(kind)
    calibrator, state = Percentile(percentile=percentile), None
    for part in np.array_split(values, batches):
        state = calibrator.update(state, torch.from_numpy(part).view(-1, 1))
    assert state is not None
    low, high = calibrator.range(state, Grid(8))
    width = (state.high - state.low) / 4096
    assert width <= 4 * (values.max() - values.min()) / 4096
    # Where data are thin, percentiles lie between two values; numpy interpolates between them.
    for share, actual in ((100 - percentile, low.item()), (percentile, high.item())):
        below = np.percentile(values, share, method="lower")
        above = np.percentile(values, share, method="higher")
        assert below - width <= actual <= above + width


def test_hundred_percent_are_the_extremes() -> None:
    values = torch.from_numpy(values_of("normal"))
    calibrator = Percentile(percentile=100)
    state = calibrator.update(None, values.view(-1, 4))
    low, high = calibrator.range(state, Grid(8))
    assert low.item() == pytest.approx(values.min().item())
    assert high.item() == pytest.approx(values.max().item())


def test_outliers_are_left_out() -> None:
    values = torch.rand(100_000, 1, generator=torch.Generator().manual_seed(0))
    values[7] = 40
    low, high = Percentile().range(Percentile().update(None, values), Grid(4))
    assert 0 <= low < 0.02
    assert 0.98 < high < 1.02


@pytest.mark.parametrize("percentile", [50, 100.5, 0.9])
def test_out_of_range(percentile: float) -> None:
    with pytest.raises(ConfigError, match="percentile"):
        build(Percentile, {"percentile": percentile}, "percentile")
