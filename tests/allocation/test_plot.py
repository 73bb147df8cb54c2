"""Where the picture has ink."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from datafree.allocation._plot import Mark, plot

CURVE, CHOSEN = (31, 96, 168), (200, 60, 30)


def drawn(path: Path, line: list[tuple[float, float]], chosen: Mark) -> NDArray[np.uint8]:
    """The picture (H, W, 3) of a curve and one chosen point, without marks."""
    plot(
        path / "p.png", titles=("left", "right"), line=line, marks=(), chosen=chosen,
        show=lambda x: f"{x:g}",
    )  # fmt: skip
    with Image.open(path / "p.png") as picture:
        return np.array(picture)


def centre(picture: NDArray[np.uint8], colour: tuple[int, int, int]) -> tuple[float, float]:
    rows, columns = np.nonzero((picture == colour).all(2))
    return float(columns.mean()), float(rows.mean())


def test_a_falling_curve_falls_and_the_chosen_point_is_on_it(tmp_path: Path) -> None:
    """On a logarithmic axis 1, 0.1, 0.01 is a straight line."""
    picture = drawn(tmp_path, [(0, 1.0), (10, 0.1), (20, 0.01)], Mark(10, 0.1, ""))
    rows, columns = np.nonzero((picture == CURVE).all(2))
    left, right = rows[columns == columns.min()].mean(), rows[columns == columns.max()].mean()
    assert left < right - 100
    x, y = centre(picture, CHOSEN)
    assert x == pytest.approx((columns.min() + columns.max()) / 2, abs=2)
    assert y == pytest.approx((left + right) / 2, abs=4)


def test_more_loss_is_higher_and_more_cost_is_further_right(tmp_path: Path) -> None:
    line = [(0.0, 1.0), (20.0, 0.01)]
    low = centre(drawn(tmp_path, line, Mark(5, 0.02, "")), CHOSEN)
    high = centre(drawn(tmp_path, line, Mark(15, 0.5, "")), CHOSEN)
    assert high[0] > low[0]
    assert high[1] < low[1]


@pytest.mark.parametrize("line", [[(5.0, 0.0)], [(0.0, 0.3)], [(1.0, 2.0), (2e12, 1e-30)]])
def test_extreme_values_can_be_drawn(tmp_path: Path, line: list[tuple[float, float]]) -> None:
    picture = drawn(tmp_path, line, Mark(*line[0], "chosen"))
    x, y = centre(picture, CHOSEN)
    assert 80 <= x <= 880
    assert 40 <= y <= 500
