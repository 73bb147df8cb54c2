from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax, softmax

from datafree.reconstruction._walk import importance
from datafree.rows import Rows, stored


def rows(values: Tensor) -> Rows:
    return stored(values, torch.device("cpu"), 2**30)


def test_importance_is_the_squared_gradient_of_the_divergence() -> None:
    """One sample at a time, by the chain rule written out for a linear rest of the network."""
    torch.manual_seed(0)
    rest, part = nn.Linear(6, 4), nn.Linear(5, 6)
    inputs, targets = torch.randn(9, 5), torch.randn(9, 6)
    found = importance(rest, part, rows(inputs), rows(targets), 2**30)[slice(None)]
    with torch.no_grad():
        student, teacher = softmax(rest(part(inputs)), 1), softmax(rest(targets), 1)
        expected = ((student - teacher) @ rest.weight).square()
        expected /= expected.mean()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert kl_div(log_softmax(rest(part(inputs)), 1), teacher, reduction="sum") > 0
