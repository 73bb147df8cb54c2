"""Small networks with random weights, on which contracts are tested: one peculiarity each."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from datafree.config import InputSpec
from datafree.graph.capture import capture
from datafree.graph.taps import BatchNorm

SPEC = InputSpec(shape=(3, 8, 8), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), classes=5)
"""Input of all networks here: 3 x 8 x 8 images of 5 classes."""


class Tiny(nn.Module):
    """Convolution, batch norm, ReLU, twice; the usual network."""

    def __init__(self) -> None:
        """Draw the weights."""
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.relu1 = nn.ReLU()
        self.conv2, self.bn2 = nn.Conv2d(4, 6, 3, 2, padding=1), nn.BatchNorm2d(6, eps=1e-3)
        self.relu2 = nn.ReLU()
        self.linear = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 5) of images (B, 3, 8, 8)."""
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        return self.linear(x.mean((2, 3)))


class InPlaceResidual(nn.Module):
    """In-place ReLU used three times, and `+=`."""

    def __init__(self) -> None:
        """Draw the weights."""
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.linear = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 5) of images (B, 3, 8, 8)."""
        x = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(x))
        y += x
        y = self.relu(y)
        z = self.conv2(y)
        z += y
        return self.linear(self.relu(z).mean((2, 3)))


class Grouped(nn.Module):
    """Depthwise, pointwise and grouped convolutions with ReLU6."""

    def __init__(self) -> None:
        """Draw the weights."""
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.pointwise, self.bn2 = nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.grouped, self.bn3 = nn.Conv2d(12, 6, 3, groups=3), nn.BatchNorm2d(6)
        self.act, self.linear = nn.ReLU6(), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 5) of images (B, 3, 8, 8)."""
        x = self.act(self.bn0(self.stem(x)))
        x = self.bn2(self.pointwise(self.act(self.bn1(self.depthwise(x)))))
        return self.linear(self.act(self.bn3(self.grouped(x))).mean((2, 3)))


class NoNorm(nn.Module):
    """No batch norm at all."""

    def __init__(self) -> None:
        """Draw the weights."""
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 5) of images (B, 3, 8, 8)."""
        return self.linear(torch.relu(self.conv(x)).mean((2, 3)))


class Attending(nn.Module):
    """A class token and patches of 2 by 2 pixels, attention of two heads, a norm of no layer.

    Args:
        channels: of the image, which may have any size.
        fused: attention in one call, or step by step.
    """

    def __init__(self, channels: int = 3, *, fused: bool = True) -> None:
        """Draw the weights."""
        super().__init__()
        self.fused = fused
        self.patches = nn.Conv2d(channels, 8, 2, 2)
        self.token = nn.Parameter(torch.randn(1, 1, 8) / 4)
        self.norm, self.qkv = nn.LayerNorm(8), nn.Linear(8, 24)
        self.mixed, self.linear = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 5) of images (B, channels, H, W)."""
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(patches.shape[0], -1, -1), patches], 1)
        batch, length, width = tokens.shape
        qkv = self.qkv(self.norm(tokens)).view(batch, length, 3, 2, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        if self.fused:
            seen = functional.scaled_dot_product_attention(query, key, value)
        else:
            scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
            seen = scores.softmax(-1) @ value
        tokens = tokens + self.mixed(seen.transpose(1, 2).reshape(batch, length, width))
        return self.linear(tokens[:, 0])


def ready(model: nn.Module, seed: int = 0) -> fx.GraphModule:
    """The canonical graph of `model`, its batch norms random but fit for Gaussian images.

    Args:
        model: one of the classes here, or any other for images of `SPEC`; its own weights are kept.
        seed: of the batch norms.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return capture(randomized(model, images(8, seed)), SPEC)


def randomized(model: nn.Module, batch: Tensor, shift: float = 0.3) -> nn.Module:
    """`model` in eval mode, its batch norms random but fit for images like `batch`.

    Their offsets have the deviation `shift`; deep random networks need about 1, or they amplify
    rounding errors a thousandfold.
    """
    norms = [m for m in model.modules() if isinstance(m, BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, shift)
    with torch.no_grad():
        model.train()(batch)
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def images(count: int, seed: int = 0, shape: tuple[int, ...] = SPEC.shape) -> Tensor:
    """Standard normal images (B, C, H, W), the same for the same seed."""
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
