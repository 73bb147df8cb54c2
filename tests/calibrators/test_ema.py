from __future__ import annotations

import pytest
import torch

from datafree.calibrators.ema import EMA
from datafree.config import build
from datafree.errors import ConfigError
from datafree.quant.grid import Grid

FIRST = torch.tensor([[[-1.0, 2.0]], [[-3.0, 6.0]]])
SECOND = torch.tensor([[[0.0, 1.0]], [[-8.0, 3.0]]])


def range_of(calibrator: EMA, *batches: torch.Tensor) -> tuple[float, float]:
    state = None
    for batch in batches:
        state = calibrator.update(state, batch)
    assert state is not None
    low, high = calibrator.range(state, Grid(4))
    return low.item(), high.item()


def test_samples_by_hand() -> None:
    assert range_of(EMA(), FIRST) == (-2, 4)
    assert range_of(EMA(), SECOND) == (-4, 2)
    assert range_of(EMA(), FIRST, SECOND) == (-4, 4)
    assert range_of(EMA(), SECOND, FIRST) == (-4, 4)


def test_momentum_by_hand() -> None:
    calibrator = EMA(mode="momentum", momentum=0.9)
    assert range_of(calibrator, FIRST) == pytest.approx((-3, 6))
    low = (0.9 * 0.1 * -3 + 0.1 * -8) / (1 - 0.81)
    high = (0.9 * 0.1 * 6 + 0.1 * 3) / (1 - 0.81)
    assert range_of(calibrator, FIRST, SECOND) == pytest.approx((low, high), rel=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 21, 100])
def test_constant_data_give_a_constant_average(steps: int) -> None:
    """The average of the GDFQ family is 3945 after 21 steps of ones (B.2.2 c)."""
    ones = torch.cat([-torch.ones(1, 1), torch.ones(1, 1)], 1)
    low, high = range_of(EMA(mode="momentum"), *[ones] * steps)
    assert (low, high) == pytest.approx((-1, 1), rel=1e-5)


def test_no_momentum_takes_the_last_batch() -> None:
    assert range_of(EMA(mode="momentum", momentum=0), FIRST, SECOND) == (-8, 3)


def test_momentum_one_never_moves_and_is_refused() -> None:
    with pytest.raises(ConfigError, match="momentum"):
        build(EMA, {"momentum": 1.0}, "ema")
    with pytest.raises(ConfigError, match="mode"):
        build(EMA, {"mode": "gdfq"}, "ema")
