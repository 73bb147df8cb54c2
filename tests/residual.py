"""Small networks with what real ones join by: shortcuts, concatenation, gates."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.config import InputSpec

RESIDUAL_SPEC = InputSpec(shape=(3, 16, 16), mean=(0.5,) * 3, std=(0.25,) * 3, classes=7)


class _Layer(nn.Sequential):
    """Convolution and batch norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
        )


class _Basic(nn.Module):
    """A basic block; its shortcut has a convolution where shapes change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = _Layer(inputs, outputs, 3, stride), _Layer(outputs, outputs)
        same = inputs == outputs and stride == 1
        self.side = nn.Identity() if same else _Layer(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.side(x) + self.second(torch.relu(self.first(x))))


class ResNet(nn.Module):
    """Stem, six basic blocks in three stages, head: ResNet-20's form, narrower."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = _Layer(3, 8)
        self.stages = nn.Sequential(
            _Basic(8, 8, 1), _Basic(8, 8, 1), _Basic(8, 16, 2), _Basic(16, 16, 1),
            _Basic(16, 24, 2), _Basic(24, 24, 1),
        )  # fmt: skip
        self.head = nn.Linear(24, RESIDUAL_SPEC.classes)
        _settle(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(torch.relu(self.stem(x)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Branches(nn.Module):
    """A shortcut, branches side by side behind a pool, and squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.block = _Layer(3, 8), _Basic(8, 8, 1)
        self.left, self.right = _Layer(8, 8, 1), _Layer(8, 8)
        self.reduce, self.expand = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.last, self.head = _Layer(16, 16), nn.Linear(16, RESIDUAL_SPEC.classes)
        _settle(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.block(torch.relu(self.stem(x))), 2)
        x = torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], 1)
        gate = torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))
        x = torch.relu(self.last(x * torch.sigmoid(self.expand(gate))))
        return self.head(x.mean((2, 3)))


def residual_images(count: int, seed: int) -> Tensor:
    """Normalised images (count, 3, 16, 16) of noise at two scales."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    fine = torch.randn(count, *RESIDUAL_SPEC.shape, generator=generator)
    return F.interpolate(coarse, size=RESIDUAL_SPEC.shape[1:], mode="bilinear") + fine / 3


def _settle(network: nn.Module) -> None:
    """Statistics of batch norms as after a training, and logits that differ."""
    network.train()
    with torch.no_grad():
        for step in range(8):
            network(residual_images(16, 100 + step))
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
    network.eval()
