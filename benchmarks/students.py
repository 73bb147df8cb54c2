"""Networks that only the benchmarks use: those trained here, and what teachers become.

Factories, as ``path/to/students.py:lenet5``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
"""Of CIFAR-10's training images."""
MNIST_MEAN, MNIST_STD = (0.1307,), (0.3081,)
"""Of MNIST's training images."""
XRAY_MEAN, XRAY_STD = (0.5,), (0.25,)
"""About those of X-rays."""


def lenet5() -> nn.Sequential:
    """6 and 16 channels, 120 and 84 features; takes (N, 1, 28, 28), returns (N, 10)."""
    return _lenet(6, 16, 120, 84)


def lenet5_half() -> nn.Sequential:
    """LeNet-5-H of DFQF's Table 2: half of every width."""
    return _lenet(3, 8, 60, 42)


def pneumonia() -> nn.Sequential:
    """Is there pneumonia on an X-ray? Takes (N, 1, 28, 28), returns one logit, (N, 1)."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 1))


def vgg() -> nn.Sequential:
    """Six convolutions of 3 by 3 with batch norms; takes (N, 3, 32, 32), returns (N, 10)."""
    layers: list[nn.Module] = []
    inputs = 3
    for stage in ((32,), (64, 64), (128, 128), (256,)):
        if layers:
            layers.append(nn.MaxPool2d(2))
        for outputs in stage:
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def mobilenetv2() -> nn.Sequential:
    """Ten inverted residuals with ReLU6; takes (N, 3, 32, 32), returns (N, 10).

    The first halves the sides: what is deepest in channels then has 16 by 16 pixels at most.
    """
    layers: list[nn.Module] = [*_convolution(3, 32, 3), nn.ReLU6()]
    inputs = 32
    for expansion, outputs, count, stride in _MOBILENET:
        for number in range(count):
            layers.append(InvertedResidual(inputs, outputs, expansion, 1 if number else stride))
            inputs = outputs
    layers += [*_convolution(inputs, 256, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(256, 10))


_MOBILENET = ((1, 24, 1, 2), (4, 24, 1, 1), (4, 40, 3, 2), (4, 80, 3, 1), (4, 128, 2, 2))
# expansion, channels, blocks, stride of the first


class InvertedResidual(nn.Module):
    """MobileNetV2's block: wider, one filter for every channel, narrow again without a ReLU.

    Its input is added where the shapes allow it.

    Args:
        inputs: channels.
        outputs: channels.
        expansion: how many times wider it is inside; 1 leaves the first convolution out.
        stride: of the filters.
    """

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        inside = expansion * inputs
        wider = [*_convolution(inputs, inside, 1), nn.ReLU6()] if expansion > 1 else []
        filters = [*_convolution(inside, inside, 3, stride, groups=inside), nn.ReLU6()]
        self.layers = nn.Sequential(*wider, *filters, *_convolution(inside, outputs, 1))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        found = self.layers(x)
        return x + found if self.adds else found


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


class Pixels(nn.Module):
    """`network`, with the normalisation of images from 0 to 1 as the first step of `forward`."""

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) from 0 to 1 to what the network returns."""
        return self.network((x - self.get_buffer("mean")) / self.get_buffer("std"))


def small_vit() -> SmallViT:
    """Seven blocks of 128 features, patches of 4 by 4; takes (N, 3, 32, 32), returns (N, 10)."""
    return SmallViT(width=128, depth=7, heads=4)


class SmallViT(nn.Module):
    """A vision transformer as DeiT's: a class token, learned positions, norms before each part.

    Args:
        width: features of a token.
        depth: blocks.
        heads: of attention.
        side: of the image, whose patches of 4 by 4 pixels are the tokens.
        classes: logits.
    """

    def __init__(
        self, width: int, depth: int, heads: int, side: int = 32, classes: int = 10
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 1 + (side // 4) ** 2, width))
        self.blocks = nn.Sequential(*(ViTBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.token, std=0.02)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images of shape (N, 3, side, side)."""
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(patches.shape[0], -1, -1), patches], dim=1)
        return self.head(self.norm(self.blocks(tokens + self.positions)[:, 0]))


class ViTBlock(nn.Module):
    """Attention and two layers of twice the width, each behind a norm and added to its input.

    Args:
        width: features of a token.
        heads: of attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens of shape (N, L, width), as they come."""
        batch, length, width = tokens.shape
        qkv = self.qkv(self.norm1(tokens)).view(batch, length, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.projection(mixed.transpose(1, 2).reshape(batch, length, width))
        return tokens + self.mlp(self.norm2(tokens))


def _convolution(
    inputs: int, outputs: int, side: int, stride: int = 1, groups: int = 1
) -> tuple[nn.Module, nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, side, stride, side // 2, groups=groups, bias=False)
    return convolution, nn.BatchNorm2d(outputs)


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
