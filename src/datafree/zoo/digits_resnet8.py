"""The residual network for 8x8 handwritten digits: 6n+2 layers with n = 1.

K. He et al., "Deep residual learning for image recognition" (CVPR 2016), section 4.2: a 3x3 stem,
three stages of one basic block each (16, 32, 64 channels, the last two halving the image), global
average pooling and a linear classifier. Images enter at their native 8x8 resolution. Shortcuts that
change shape are 1x1 convolutions with batch norm (option B), so the network has ten quantizable
layers and nine batch norms.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["BasicBlock", "DigitsResNet8"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut: ``relu(f(x) + shortcut(x))``."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        """Build the block.

        Args:
            in_channels: Channels of the input.
            out_channels: Channels of the output.
            stride: Stride of the first convolution and of the shortcut.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(
            in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False
        )
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to ``x`` of shape (N, in_channels, H, W)."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu2(out + self.shortcut(x))


class DigitsResNet8(nn.Module):
    """ResNet-8 for one-channel 8x8 digits, ten classes."""

    def __init__(self) -> None:
        """Build the network with fresh weights."""
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        )
        self.stage1 = BasicBlock(16, 16, stride=1)
        self.stage2 = BasicBlock(16, 32, stride=2)
        self.stage3 = BasicBlock(32, 64, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, 10) of normalised images ``x`` (N, 1, 8, 8)."""
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return self.classifier(torch.flatten(self.pool(x), 1))
