"""Small networks of the kinds that hubs of classifiers lack, ``own/name``; weights are drawn.

Detectors, maps, embeddings, one logit, signals, several inputs, and Hugging Face's.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.errors import UnknownNameError

Shape = tuple[int, ...]
Made = tuple[nn.Module, Shape | tuple[Shape, ...]]
"""A network and the shape of what it takes, of every input where there are several."""


def yolo() -> Made:
    """A detector with two heads, as YOLO's: a list of (B, 11, H, W)."""
    return _Yolo(), (3, 64, 64)


def unet() -> Made:
    """Classes at every position, with a transposed convolution and a bilinear resize."""
    return _UNet(), (3, 32, 32)


def embedding() -> Made:
    """A face network's shape: features behind a batch norm of one dimension."""
    return _Embedding(), (3, 48, 48)


def one_logit() -> Made:
    """Two classes of grey images, one logit."""
    return nn.Sequential(_Block(1, 16), _Block(16, 32, 2), *_classifier(32, 1)), (1, 28, 28)


def normalised_inside() -> Made:
    """Means and deviations are part of `forward`."""
    return _Normalised(), (3, 32, 32)


def audio() -> Made:
    """A wave of one channel, convolved along time."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 16), (16, 32), (32, 32)):
        layers += [nn.Conv1d(inputs, outputs, 9, 4, 4, bias=False), nn.BatchNorm1d(outputs)]
        layers += [nn.ReLU()]
    tail = [nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 6)]
    return nn.Sequential(*layers, *tail), (1, 4000)


def image_and_vector() -> Made:
    """An image and ten numbers about it."""
    return _ImageAndVector(), ((3, 32, 32), (10,))


def two_images() -> Made:
    """Whether two images show the same: one network for both, and their difference."""
    return _TwoImages(), ((3, 32, 32), (3, 32, 32))


def video() -> Made:
    """Eight frames, convolved along time too."""
    layers = [
        nn.Conv3d(3, 12, 3, padding=1, bias=False), nn.BatchNorm3d(12), nn.ReLU(),
        nn.Conv3d(12, 24, 3, 2, 1, bias=False), nn.BatchNorm3d(24), nn.ReLU(),
    ]  # fmt: skip
    tail = [nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(24, 5)]
    return nn.Sequential(*layers, *tail), (3, 8, 24, 24)


def vectors() -> Made:
    """A perceptron on twenty numbers."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((20, 64), (64, 64)):
        layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 4)), (20,)


def group_norms() -> Made:
    """GroupNorm instead of batch norms."""
    layers = [
        nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1), nn.GroupNorm(4, 32), nn.ReLU(),
    ]  # fmt: skip
    return nn.Sequential(*layers, *_classifier(32, 10)), (3, 32, 32)


def pixel_unshuffle() -> Made:
    """A focus stem: pixels are moved into channels before the first layer."""
    return nn.Sequential(nn.PixelUnshuffle(2), _Block(12, 24), *_classifier(24, 10)), (3, 32, 32)


def super_resolution() -> Made:
    """Images twice as large, by pixel shuffle."""
    layers = [nn.Conv2d(3, 24, 5, padding=2), nn.ReLU(), nn.Conv2d(24, 12, 3, padding=1)]
    return nn.Sequential(*layers, nn.PixelShuffle(2)), (3, 24, 24)


def hf_vit() -> Made:
    """Hugging Face's ViT in small: returns a `ModelOutput`."""
    hub: Any = importlib.import_module("transformers")
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = hub.ViTConfig(
        **sizes, intermediate_size=128, image_size=32, patch_size=8, num_labels=7
    )
    return hub.ViTForImageClassification(config), (3, 32, 32)


def hf_segformer() -> Made:
    """Hugging Face's SegFormer in small."""
    hub: Any = importlib.import_module("transformers")
    config = hub.SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 48, 64], num_attention_heads=[1, 2, 3, 4],
        decoder_hidden_size=64, num_labels=5,
    )  # fmt: skip
    return hub.SegformerForSemanticSegmentation(config), (3, 64, 64)


def hf_resnet() -> Made:
    """Hugging Face's ResNet in small."""
    hub: Any = importlib.import_module("transformers")
    config = hub.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=6
    )
    return hub.ResNetForImageClassification(config), (3, 32, 32)


def lraspp() -> Made:
    """Torchvision's LR-ASPP on MobileNetV3: a dict of maps."""
    return _segmenter("lraspp_mobilenet_v3_large")


def deeplab() -> Made:
    """Torchvision's DeepLabV3 on MobileNetV3."""
    return _segmenter("deeplabv3_mobilenet_v3_large")


def resnet(depth: int) -> Made:
    """A ResNet for images of 32 pixels, of 6 n + 2 layers."""
    models: Any = importlib.import_module("pytorchcv.models.resnet_cifar")
    return models.get_resnet_cifar(num_classes=10, blocks=depth, bottleneck=False), (3, 32, 32)


NETWORKS: dict[str, Callable[[], Made]] = {
    **{
        make.__name__: make
        for make in (
            yolo, unet, embedding, one_logit, normalised_inside, audio, image_and_vector,
            two_images, video, vectors, group_norms, pixel_unshuffle,
            super_resolution, hf_vit, hf_segformer, hf_resnet, lraspp, deeplab,
        )
    },
    **{f"resnet{depth}": partial(resnet, depth) for depth in (20, 32, 44, 56, 110)},
}  # fmt: skip
"""Functions that return a network and the shape of what it takes."""


def built(name: str) -> Made:
    """The network called `name`, with weights drawn.

    Raises:
        UnknownNameError: no such network.
    """
    if name not in NETWORKS:
        raise UnknownNameError("network of own", name, NETWORKS)
    return NETWORKS[name]()


def _segmenter(name: str) -> Made:
    models: Any = importlib.import_module("torchvision.models.segmentation")
    return getattr(models, name)(weights=None, weights_backbone=None, num_classes=21), (3, 64, 64)


def _classifier(features: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes)]


class _Block(nn.Sequential):
    def __init__(
        self, inputs: int, outputs: int, stride: int = 1, act: type[nn.Module] = nn.ReLU
    ) -> None:
        conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), act())


class _Yolo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *(_Block(*sizes, 2, nn.SiLU) for sizes in ((3, 16), (16, 32), (32, 48)))
        )
        self.deep, self.side = _Block(48, 64, 2, nn.SiLU), _Block(64, 48, 1, nn.SiLU)
        self.mix = _Block(96, 48, 1, nn.SiLU)
        self.heads = nn.ModuleList([nn.Conv2d(48, 11, 1), nn.Conv2d(64, 11, 1)])

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        deep = self.deep(x)
        above = F.interpolate(self.side(deep), scale_factor=2.0)
        fine = self.mix(torch.cat([above, x], 1))
        return [head(part) for head, part in zip(self.heads, (fine, deep), strict=True)]


class _UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([_Block(3, 16), _Block(16, 32), _Block(32, 64)])
        self.up = nn.ConvTranspose2d(64, 32, 2, 2)
        self.middle, self.fine, self.out = _Block(64, 32), _Block(48, 16), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.down
        a = first(x)
        b = second(F.max_pool2d(a, 2))
        b = self.middle(torch.cat([self.up(third(F.max_pool2d(b, 2))), b], 1))
        above = F.interpolate(b, scale_factor=2.0, mode="bilinear")
        return self.out(self.fine(torch.cat([above, a], 1)))


class _Embedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(_Block(3, 16, 2), _Block(16, 32, 2), *_classifier(32, 64))
        self.neck = nn.BatchNorm1d(64)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.neck(self.body(x)))


class _Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1))
        self.body = nn.Sequential(_Block(3, 16), _Block(16, 32, 2), *_classifier(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.body((x - self.get_buffer("mean")) / self.get_buffer("std"))


class _ImageAndVector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(_Block(3, 16, 2), _Block(16, 32, 2), *_classifier(32, 32))
        self.side = nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.out = nn.Linear(48, 5)

    def forward(self, image: Tensor, facts: Tensor) -> Tensor:
        return self.out(torch.cat([torch.relu(self.body(image)), self.side(facts)], 1))


class _TwoImages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(_Block(3, 16, 2), _Block(16, 32, 2), *_classifier(32, 32))
        self.out = nn.Linear(32, 2)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.out((self.body(first) - self.body(second)).abs())
