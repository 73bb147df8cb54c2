from __future__ import annotations

import torch

from datafree.graph.logistic import logistic


def test_it_is_the_logistic_function() -> None:
    x = torch.linspace(-17, 17, 4001)
    exact = 1 / (1 + torch.exp(-x.double()))
    assert float((logistic(x).double() - exact).abs().max()) < 3e-7
    assert logistic(torch.tensor(0.0)) == 0.5


def test_it_ends_at_zero_and_one() -> None:
    x = torch.tensor([-1e30, -40.0, 40.0, 1e30])
    assert logistic(x).tolist() == [logistic(torch.tensor(v)) for v in (-18, -18, 18, 18)]
    assert float(logistic(x).min()) >= 0 and float(logistic(x).max()) <= 1


def test_it_rises() -> None:
    x = torch.linspace(-18, 18, 10_001)
    assert float(logistic(x).diff().min()) >= -2e-7  # but for two units in the last place
