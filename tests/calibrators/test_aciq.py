from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from datafree.calibrators.aciq import ACIQ, gauss_clip, laplace_clip
from datafree.config import build
from datafree.errors import ConfigError
from datafree.quant.grid import Grid

Array = NDArray[np.float64]
# Clip over the distribution's scale for 1 to 9 bits, as printed in B.2.6.
LAPLACE = [1.863, 2.831, 3.897, 5.029, 6.205, 7.413, 8.646, 9.897, 11.163]
GAUSS = [1.240, 1.711, 2.152, 2.559, 2.936, 3.287, 3.615, 3.924, 4.216]


def laplace_error(clip: float, bits: int, b: float = 1) -> float:
    return 2 * b**2 * math.exp(-clip / b) + clip**2 / (3 * 4**bits)


def gauss_error(clip: float, bits: int, s: float = 1) -> float:
    density = math.sqrt(2 / math.pi) * clip * s * math.exp(-(clip**2) / (2 * s**2))
    tail = (clip**2 + s**2) * math.erfc(clip / (s * math.sqrt(2)))
    return tail - density + clip**2 / (3 * 4**bits)


@pytest.mark.parametrize("bits", range(1, 10))
def test_the_printed_table(bits: int) -> None:
    assert laplace_clip(bits) == pytest.approx(LAPLACE[bits - 1], abs=5.001e-4)
    assert gauss_clip(bits) == pytest.approx(GAUSS[bits - 1], abs=5.001e-4)


@pytest.mark.parametrize("bits", range(1, 10))
def test_no_other_clip_has_less_error(bits: int) -> None:
    others = np.arange(0.05, 13, 0.001)
    best = others[np.argmin([laplace_error(float(a), bits) for a in others])]
    assert laplace_clip(bits) == pytest.approx(best, abs=2e-3)
    best = others[np.argmin([gauss_error(float(a), bits) for a in others])]
    assert gauss_clip(bits) == pytest.approx(best, abs=2e-3)


@pytest.mark.parametrize("bits", [2, 4])
def test_the_errors_are_those_of_clipping_and_rounding(bits: int) -> None:
    """Clip noise integrated from the densities; rounding noise is step^2 / 12."""
    x = np.linspace(0, 60, 600_001)
    for clip, error, density in (
        (laplace_clip(bits), laplace_error, np.exp(-x) / 2),
        (gauss_clip(bits), gauss_error, np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)),
    ):
        outside = np.maximum(x - clip, 0) ** 2 * density
        noise = 2 * outside.sum() * 1e-4 + (2 * clip / 2**bits) ** 2 / 12
        assert error(clip, bits) == pytest.approx(noise, rel=1e-4)


def ends(values: Array, grid: Grid, **options: object) -> tuple[float, float]:
    """Range of `values` given in three batches."""
    calibrator, state = build(ACIQ, options, "aciq"), None
    for part in np.array_split(values, 3):
        state = calibrator.update(state, torch.tensor(part, dtype=torch.float32).view(-1, 1))
    assert state is not None
    low, high = calibrator.range(state, grid)
    return low.item(), high.item()


def draw(kind: str) -> Array:
    rng = np.random.default_rng(0)
    return rng.laplace(0.3, 0.5, 30_000) if kind == "laplace" else rng.normal(0.3, 0.5, 30_000)


@pytest.mark.parametrize("bits", [2, 4])
def test_both_signs(bits: int) -> None:
    values = draw("laplace")
    b = np.abs(values - values.mean()).mean()
    expected = (values.mean() - LAPLACE[bits - 1] * b, values.mean() + LAPLACE[bits - 1] * b)
    found = ends(values, Grid(bits), distribution="laplace")
    assert found == pytest.approx(expected, rel=2e-3)
    values = draw("gauss")
    expected = values.mean() + GAUSS[bits - 1] * values.std()
    found = ends(values, Grid(bits), distribution="gauss")
    assert found[1] == pytest.approx(expected, rel=2e-3)
    assert found[0] == pytest.approx(2 * values.mean() - expected, rel=4e-3)


@pytest.mark.parametrize("shift", [0.0, 0.3])
@pytest.mark.parametrize("bits", [2, 4])
def test_never_negative_values_have_one_bit_more(bits: int, shift: float) -> None:
    """A ReLU keeps half of a centred distribution: the statistics are those before it."""
    before = draw("laplace") - 0.3
    values: Array = np.where(before > 0, before + shift, 0.0)
    kept = values[values > 0]
    low, high = ends(values, Grid(bits), distribution="laplace")
    assert low == 0
    assert high == pytest.approx(LAPLACE[bits] * kept.mean(), rel=2e-3)
    if not shift:
        assert high == pytest.approx(LAPLACE[bits] * np.abs(before).mean(), rel=0.03)
    high = ends(values, Grid(bits), distribution="gauss")[1]
    assert high == pytest.approx(GAUSS[bits] * math.sqrt((kept**2).mean()), rel=2e-3)


@pytest.mark.parametrize(
    ("grid", "bits"),
    [(Grid(4), 5), (Grid(4, symmetric=True, signed=False), 5), (Grid(4, symmetric=True), 4)],
    ids=str,
)
def test_grids_with_codes_below_zero_gain_nothing_from_one_sided_values(
    grid: Grid, bits: int
) -> None:
    values: Array = np.abs(draw("laplace") - 0.3)
    high = ends(values, grid, distribution="laplace")[1]
    assert high == pytest.approx(LAPLACE[bits - 1] * values.mean(), rel=2e-3)


def test_sigma_from_the_range_by_hand() -> None:
    """Of 8 values from -1 to 3: 4 * 0.175 (1 + sqrt(pi ln 4)) / sqrt(2 ln 8) = 1.0596."""
    values = np.array([-1, 3, 0.5, 0.2, -0.1, 1, 1.5, 0.9])
    low, high = ends(values, Grid(2), distribution="gauss", sigma="range")
    sigma = 4 * 0.54021 / math.sqrt(2 * math.log(8))
    assert sigma == pytest.approx(1.0596, abs=1e-4)
    assert high == pytest.approx(min(values.mean() + 1.711 * sigma, 3), rel=1e-3)
    assert low == pytest.approx(max(values.mean() - 1.711 * sigma, -1), rel=1e-3)


def test_sigma_from_the_range_of_mirrored_values() -> None:
    """Four positive values up to 3 and their negatives; the zeros do not count."""
    values = np.array([0, 0, 0, 0.5, 3, 0.1, 1])
    sigma = 6 * 0.54021 / math.sqrt(2 * math.log(8))
    assert 2.152 * sigma > 3
    assert ends(values, Grid(2), distribution="gauss", sigma="range") == (0, 3)
    many = np.concatenate((values, np.full(20_000, 0.5)))
    sigma = 6 * 0.54021 / math.sqrt(2 * math.log(40_008))
    found = ends(many, Grid(2), distribution="gauss", sigma="range")
    assert found == (0, pytest.approx(2.152 * sigma, rel=1e-3))


def squared_error(values: Array, low: float, high: float) -> float:
    """On an affine 4-bit grid, from B.1."""
    scale = (high - low) / 15
    zero = np.rint(-low / scale)
    rounded = (np.clip(np.rint(values / scale) + zero, 0, 15) - zero) * scale
    return float(((rounded - values) ** 2).sum())


@pytest.mark.parametrize("kind", ["laplace", "gauss", "uniform", "outliers"])
def test_auto_takes_the_range_with_less_error(kind: str) -> None:
    values = draw(kind)
    if kind == "uniform":
        values = np.random.default_rng(1).uniform(-1, 1, 30_000)
    if kind == "outliers":
        values = np.concatenate((values, [30.0, -20.0]))
    both = [ends(values, Grid(4), distribution=name) for name in ("laplace", "gauss")]
    better = min(both, key=lambda found: squared_error(values, *found))
    assert ends(values, Grid(4)) == better
    if kind in ("laplace", "gauss"):
        assert better == both[kind == "gauss"]


@pytest.mark.parametrize("value", [0.0, 2.0, -2.0])
@pytest.mark.parametrize("sigma", ["sample", "range"])
def test_one_value(value: float, sigma: str) -> None:
    calibrator = build(ACIQ, {"sigma": sigma}, "aciq")
    state = calibrator.update(None, torch.tensor([[value]]))
    low, high = (end.item() for end in calibrator.range(state, Grid(4)))
    assert low == pytest.approx(min(value, 0), rel=1e-3)
    assert high == pytest.approx(max(value, 0), rel=1e-3)


@pytest.mark.parametrize("options", [{"distribution": "cauchy"}, {"sigma": "mad"}])
def test_unknown_choices(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        build(ACIQ, options, "aciq")
