from __future__ import annotations

import torch
from torch import fx, nn

from datafree.graph.footprint import footprint


class Chain(nn.Module):
    """Four maps of 3 x 4 x 4 floats are made, of which two are needed at a time; one view."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(4):
            x = x + 1
        return x.view(-1, 48)


def test_bytes_of_one_image() -> None:
    network = fx.symbolic_trace(Chain())
    found = footprint(network, torch.zeros(1, 3, 4, 4))
    one = 4 * 3 * 4 * 4
    assert found.kept == 5 * one, "the image itself, and what four layers return"
    assert found.peak == 2 * one


def test_branches_are_needed_until_they_meet() -> None:
    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 + (x * 2 + 3)

    one = 4 * 3 * 4 * 4
    assert footprint(fx.symbolic_trace(Branch()), torch.zeros(1, 3, 4, 4)).peak == 3 * one
