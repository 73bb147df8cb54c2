"""Small networks drawn at random, of what real ones are made of."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

from datafree.config import InputSpec

DRAWN_SPEC = InputSpec(shape=(3, 12, 12), mean=(0.5,) * 3, std=(0.25,) * 3, classes=7)
KINDS = ("plain", "depthwise", "residual", "concat", "gate", "pool")
ALL_KINDS = ("plain", "groups", "depthwise", "residual", "concat", "gate", "twice", "pool")
_ACTIVATIONS = (nn.ReLU, nn.ReLU, nn.ReLU6, nn.SiLU, nn.LeakyReLU, nn.Hardswish, nn.Identity)


class _Layer(nn.Module):
    """Convolution, batch norm and activation function."""

    def __init__(self, draw: random.Random, inputs: int, outputs: int, groups: int = 1) -> None:
        super().__init__()
        kernel = draw.choice((1, 3, 3, 5))
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=draw.random() < 0.3
        )
        self.norm = nn.BatchNorm2d(outputs)
        self.activation = draw.choice(_ACTIVATIONS)()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x)))


class _Residual(nn.Module):
    """What a layer or two add to their input, with or without an activation behind."""

    def __init__(self, draw: random.Random, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(_Layer(draw, channels, channels) for _ in range(draw.choice((1, 2))))
        )
        self.after = draw.choice((nn.ReLU, nn.Identity))()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(x + self.body(x))


class _Concatenated(nn.Module):
    """Two branches side by side."""

    def __init__(self, draw: random.Random, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.left, self.right = (
            _Layer(draw, channels, half),
            _Layer(draw, channels, channels - half),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.left(x), self.right(x)], 1)


class _Twice(nn.Module):
    """One layer on what it made of its input, with the same weights."""

    def __init__(self, draw: random.Random, channels: int) -> None:
        super().__init__()
        self.layer = _Layer(draw, channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))


class _Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, draw: random.Random, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)
        self.gate = draw.choice((nn.Sigmoid, nn.Hardsigmoid))()

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True)
        return x * self.gate(self.expand(torch.relu(self.reduce(pooled))))


class Drawn(nn.Module):
    """A network of a few parts; the same seed draws the same one."""

    def __init__(self, seed: int, kinds: tuple[str, ...] = KINDS) -> None:
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        width = draw.choice((6, 8, 12))
        parts: list[nn.Module] = [_Layer(draw, 3, width)]
        for _ in range(draw.choice((2, 3, 4))):
            kind = draw.choice(kinds)
            if kind == "plain":
                parts.append(_Layer(draw, width, width))
            elif kind == "groups":
                parts.append(_Layer(draw, width, width, groups=2))
            elif kind == "twice":
                parts.append(_Twice(draw, width))
            elif kind == "depthwise":
                parts.append(_Layer(draw, width, width, groups=width))
            elif kind == "residual":
                parts.append(_Residual(draw, width))
            elif kind == "concat":
                parts.append(_Concatenated(draw, width))
            elif kind == "gate":
                parts.append(_Gate(draw, width))
            else:
                pool = draw.choice((nn.MaxPool2d, nn.AvgPool2d))
                if not any(isinstance(part, pool) for part in parts):
                    parts.append(pool(2))
        self.parts = nn.Sequential(*parts)
        self.head = nn.Linear(width, DRAWN_SPEC.classes)
        _settle(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.parts(x).mean((2, 3)))


def drawn_images(count: int, seed: int) -> Tensor:
    """Normalised images (count, 3, 12, 12) of noise at two scales."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 3, 3, generator=generator)
    fine = torch.randn(count, *DRAWN_SPEC.shape, generator=generator)
    return nn.functional.interpolate(coarse, size=DRAWN_SPEC.shape[1:], mode="bilinear") + fine / 3


def _settle(network: nn.Module) -> None:
    """Statistics of batch norms as after a training, and logits that differ."""
    network.train()
    with torch.no_grad():
        for step in range(8):
            network(drawn_images(16, step))
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
    network.eval()
