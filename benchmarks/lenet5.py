"""LeNet-5 for MNIST and its half-width student, of DFQF's Table 2: no batch norm, max pooling.

With this folder on the path they are factories: ``lenet5:lenet5`` and ``lenet5:lenet5_half``.
"""

from __future__ import annotations

from torch import nn

MEAN, STD = (0.1307,), (0.3081,)
"""Of MNIST's training images."""


def lenet5() -> nn.Sequential:
    """6 and 16 channels, 120 and 84 features; takes (N, 1, 28, 28), returns (N, 10)."""
    return _lenet(6, 16, 120, 84)


def lenet5_half() -> nn.Sequential:
    """LeNet-5-H: half of every width."""
    return _lenet(3, 8, 60, 42)


def _lenet(first: int, second: int, third: int, fourth: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, first, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(second * 5 * 5, third),
        nn.ReLU(),
        nn.Linear(third, fourth),
        nn.ReLU(),
        nn.Linear(fourth, 10),
    )
