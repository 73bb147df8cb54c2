"""The network that turns latent vectors into images, as Genie uses it (algorithms A.6.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.tensors import initialise_uniform

_WIDE, _NARROW = 128, 64
_SLOPE = 0.2


class _Columns(nn.Module):
    """A linear layer that keeps its weights as (inputs, outputs).

    Where a few rows pass a hundred million weights, their gradient takes a quarter of the time
    that it takes for weights kept the other way.
    """

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.get_parameter("weight").detach().t().contiguous())
        self.bias = nn.Parameter(linear.get_parameter("bias").detach())

    def forward(self, rows: Tensor) -> Tensor:
        """(B, outputs) from (B, inputs)."""
        return torch.addmm(self.bias, rows, self.weight)


class ImageGenerator(nn.Module):
    """Two rounds of doubling from a quarter of the image size (Jeon et al., GENIE, CVPR 2023).

    ``Linear(latent, 128 h w) -> BN -> x2 -> Conv3x3(128, 64) -> BN -> LeakyReLU 0.2 -> x2 ->
    Conv3x3(64, C) -> Tanh -> BN without scale and shift``, where h and w are a quarter of height
    and width. Sizes that four does not divide are rounded up and the images cut to size, around
    their centre, before Tanh. Batch norms always use the statistics of the batch, so every channel
    of a batch of images has mean 0 and deviation 1.

    For images of 224 x 224 pixels the linear layer alone has 103 million weights.
    """

    def __init__(
        self, shape: tuple[int, int, int], latent: int, generator: torch.Generator
    ) -> None:
        """A generator with random weights, on the CPU.

        Args:
            shape: channels, height, width of the images.
            latent: length of a latent vector.
            generator: source of the weights, on the CPU; drawn as torch initialises these layers:
                uniform within ``1 / sqrt(inputs of a unit)``.
        """
        super().__init__()
        channels, self.height, self.width = shape
        self.base = -(-self.height // 4), -(-self.width // 4)
        # skip_init: torch's own initialisation would draw from the global random numbers.
        units = _WIDE * self.base[0] * self.base[1]
        linear = nn.utils.skip_init(nn.Linear, latent, units)
        self.conv1 = nn.utils.skip_init(nn.Conv2d, _WIDE, _NARROW, 3, padding=1)
        self.conv2 = nn.utils.skip_init(nn.Conv2d, _NARROW, channels, 3, padding=1)
        for layer in (linear, self.conv1, self.conv2):
            initialise_uniform(layer, generator)
        self.linear = _Columns(linear)
        self.norm0 = nn.BatchNorm2d(_WIDE, track_running_stats=False)
        self.norm1 = nn.BatchNorm2d(_NARROW, track_running_stats=False)
        self.norm2 = nn.BatchNorm2d(channels, affine=False, track_running_stats=False)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, latents: Tensor) -> Tensor:
        """Images (B, C, H, W) in normalised space from latent vectors (B, latent), B at least 2.

        One image of up to 4 x 4 pixels has a single value per channel, which a batch norm in
        training mode cannot take.
        """
        # Channels last from the start: the view below costs nothing and convolutions are fastest.
        x = self.linear(latents).view(len(latents), *self.base, _WIDE).permute(0, 3, 1, 2)
        x = F.leaky_relu(self.norm1(doubled(self.norm0(x), self.conv1)), _SLOPE)
        x = self._cut(doubled(x, self.conv2))
        return self.norm2(torch.tanh(x))

    def _cut(self, x: Tensor) -> Tensor:
        top, left = (x.shape[2] - self.height) // 2, (x.shape[3] - self.width) // 2
        return x[:, :, top : top + self.height, left : left + self.width]


def doubled(x: Tensor, layer: nn.Module) -> Tensor:
    """`layer` on `x` (B, C, H, W) of twice the size, every value repeated: (B, C', 2 H, 2 W).

    Of the nine values that a position of the large image reads, at most four differ; so this is one
    transposed convolution of `x` itself, with the sums of the weights that meet the same value.

    Args:
        x: small images.
        layer: a convolution of 3 x 3, padded by 1, with a bias.
    """
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    wide = F.pad(weight.flip(2, 3), (1, 1, 1, 1))
    rows = wide[:, :, 1:] + wide[:, :, :-1]
    kernel = (rows[..., 1:] + rows[..., :-1]).transpose(0, 1)
    return F.conv_transpose2d(x, kernel, bias, stride=2, padding=1)
