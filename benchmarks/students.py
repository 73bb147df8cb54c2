"""Networks that only the benchmarks use: LeNet-5, and what teachers are distilled into.

Factories, as ``path/to/students.py:lenet5``.
"""

from __future__ import annotations

from torch import nn

MNIST_MEAN, MNIST_STD = (0.1307,), (0.3081,)
"""Of MNIST's training images."""


def lenet5() -> nn.Sequential:
    """6 and 16 channels, 120 and 84 features; takes (N, 1, 28, 28), returns (N, 10)."""
    return _lenet(6, 16, 120, 84)


def lenet5_half() -> nn.Sequential:
    """LeNet-5-H of DFQF's Table 2: half of every width."""
    return _lenet(3, 8, 60, 42)


def plain_digits() -> nn.Sequential:
    """Three convolutions where the digits teacher has nine; takes (N, 1, 8, 8), returns (N, 10)."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 2)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)]
        layers += [nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def resnet8() -> nn.Module:
    """The shared data's ResNet-20 with two layers instead of six in every stage."""
    from benchmarks.networks import shared_networks
    from benchmarks.place import Place

    return shared_networks(Place.here()).CifarResNet(depth=8)


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
