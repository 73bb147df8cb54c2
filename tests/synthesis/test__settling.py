"""When steps end, against losses whose falls are known."""

from __future__ import annotations

import pytest
import torch

from datafree.synthesis._settling import Settling
from datafree.synthesis.dsg import DSG
from datafree.synthesis.zeroq import ZeroQ
from networks import SPEC, captured


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=1.0)


def taken(losses: list[float], least_fall: float) -> tuple[int, list[float]]:
    """Steps until the end, and the rate of each."""
    steps, rates = optimizer(), list[float]()
    settling = Settling(steps, least_fall)
    for count, loss in enumerate(losses, 1):
        rates.append(steps.param_groups[0]["lr"])
        if settling.over(loss):
            return count, rates
    return len(losses), rates


def test_a_loss_that_stands_still_ends_after_three_rates() -> None:
    """Ten steps without a fall at each rate; the first step of all has nothing before it."""
    count, rates = taken([5.0] * 100, 0.001)
    assert count == 31
    assert rates == pytest.approx([1.0] * 11 + [0.1] * 10 + [0.01] * 10)


def test_a_loss_that_falls_goes_on() -> None:
    """100, 99, 98 …: over ten steps it falls by 10, a tenth of what it could ever fall."""
    assert taken([100.0 - k for k in range(100)], 0.05)[0] == 100
    # k steps fall by k, of which the last ten are a fifth once k is 50
    count, rates = taken([100.0 - k for k in range(100)], 0.2)
    assert rates.index(min(rates[:55])) == 51 and count > 60


def test_what_counts_is_the_lowest_loss() -> None:
    """It swings, and every swing goes a little lower: not settled."""
    swinging = [100.0 - k + 50 * (k % 2) for k in range(60)]
    assert taken(swinging, 0.001)[0] == 60


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_losses_that_diverge_are_not_taken_for_settled(bad: float) -> None:
    assert taken([bad] * 50, 0.001)[0] == 50


@pytest.mark.parametrize("method", [ZeroQ, DSG])
def test_methods_end_and_tell_all_their_steps(method: type[ZeroQ | DSG]) -> None:
    for least_fall, most in ((0.001, 399), (0.0, 400)):
        told: list[int] = []
        chosen = method(iterations=400, least_fall=least_fall, batch_size=4)
        for batch in chosen.batches(captured("Tiny"), 4, 0, told.append):
            state = chosen.prepare(captured("Tiny"), SPEC, torch.Generator().manual_seed(0))
            chosen.make_batch(captured("Tiny"), SPEC, batch, state)
        assert sum(told) == 400
        ended = told.count(1) if told[-1] == 1 else len(told) - 1
        assert (ended < most) if least_fall else (ended == most)
