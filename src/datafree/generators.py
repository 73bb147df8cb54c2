"""Generators: networks that turn latent vectors, and classes, into images (algorithms A.4.1, A.5).

They are trained against a teacher, kept in files, and asked for images by whoever needs some.
"""

from __future__ import annotations

import json
from collections.abc import Generator as Steps
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, FiniteFloat
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from datafree.bounds import check_ordinary, first_line, json_of
from datafree.config import Frozen
from datafree.errors import DataError
from datafree.files import atomic_path
from datafree.tensors import device_of, initialise_uniform

FORMAT = "datafree-generator-1"

PUBLISHED_EPS = 0.8
"""Epsilon of the batch norms behind convolutions in DAFL, GDFQ, DFQF and Qimera.

Their code passes 0.8 where PyTorch expects epsilon, most likely meant as a momentum. The batch norm
behind the linear layer and the one of the images have PyTorch's usual 1e-5 there.
"""

Size = Annotated[int, Field(ge=1)]


class GeneratorConfig(Frozen):
    """Which generator: all that its weights do not say.

    Attributes:
        shape: channels, height, width of the images.
        classes: of the network it is to teach; a generator without condition knows none.
        latent: length of a latent vector; the unconditional one of DFQF has 1000.
        condition: how the class enters. `none`: not at all (DAFL, DFQF). `embedding`: a learned
            vector per class, multiplied with the latent one (GDFQ on CIFAR). `batch_norm`: inner
            batch norms with scale and shift per class (GDFQ on ImageNet).
        body: `upsample`, the layers of DAFL, GDFQ and DFQF; or `dcgan`, transposed convolutions.
        width: channels of the widest convolutions, 128 in the literature; a generator of 32 takes a
            tenth of the time.
        eps: of the batch norms behind convolutions.
    """

    shape: tuple[Size, Size, Size]
    classes: Size
    latent: Size = 100
    condition: Literal["none", "embedding", "batch_norm"] = "embedding"
    body: Literal["upsample", "dcgan"] = "upsample"
    width: int = Field(default=128, ge=2)
    eps: FiniteFloat = Field(default=PUBLISHED_EPS, gt=0)


class ConditionalBatchNorm(nn.Module):
    """A batch norm whose scale and shift depend on the class of each image."""

    def __init__(self, classes: int, channels: int, eps: float) -> None:
        """Scale 1 and shift 0 for each of `classes`."""
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps, affine=False)
        self.scale = nn.Parameter(torch.ones(classes, channels))
        self.shift = nn.Parameter(torch.zeros(classes, channels))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Values (B, C, H, W), each image scaled and shifted as its class has it, or several."""
        scale, shift = of_classes(labels, self.scale), of_classes(labels, self.shift)
        return self.norm(x) * scale[:, :, None, None] + shift[:, :, None, None]


class Generator(nn.Module):
    """Two rounds of doubling from a quarter of the image size.

    `upsample`: ``Linear(latent, 128 h w) -> BN -> x2 -> Conv3x3(128, 128) -> BN -> LeakyReLU 0.2 ->
    x2 -> Conv3x3(128, 64) -> BN -> LeakyReLU 0.2 -> Conv3x3(64, C) -> Tanh -> BN``, where h and w
    are a quarter of height and width (Chen et al., DAFL, ICCV 2019; Xu et al., GDFQ, ECCV 2020).

    `dcgan`: ``Linear(latent, 256 h w) -> BN -> ReLU -> ConvT4x4(256, 128) -> BN -> ReLU ->
    ConvT4x4(128, C) -> Tanh -> BN`` with transposed convolutions of stride 2, no biases and weights
    from N(0, 0.02^2) (Radford et al., ICLR 2016).

    Sizes that four does not divide are rounded up and the images cut to size, around their centre,
    before Tanh. The last batch norm has neither scale nor shift: every channel of a batch of images
    has mean 0 and deviation 1 in training mode. All batch norms track running statistics, which
    they use in evaluation mode.

    For images of 224 x 224 pixels the linear layer of `upsample` has 40 million weights.
    """

    def __init__(self, config: GeneratorConfig, random: torch.Generator) -> None:
        """A generator with random weights, on the CPU, in training mode.

        Args:
            config: which one.
            random: source of the weights, on the CPU; drawn as torch initialises these layers, or
                as the DCGAN paper does.
        """
        super().__init__()
        self.config = config
        channels, height, width = config.shape
        base = -(-height // 4), -(-width // 4)
        wide, narrow = config.width, config.width // 2
        self.embedding = None
        if config.condition == "embedding":
            self.embedding = nn.utils.skip_init(nn.Embedding, config.classes, config.latent)
        if config.body == "upsample":
            self.stages = nn.ModuleList(
                [
                    _Stage(_Projection(config.latent, wide, base), _norm(config, wide, 1e-5)),
                    _Stage(_doubling(wide, wide), _norm(config, wide), nn.LeakyReLU(0.2)),
                    _Stage(_doubling(wide, narrow), _norm(config, narrow), nn.LeakyReLU(0.2)),
                ]
            )
            self.image = nn.utils.skip_init(nn.Conv2d, narrow, channels, 3, padding=1)
        else:
            first = _Projection(config.latent, 2 * wide, base, bias=False)
            self.stages = nn.ModuleList(
                [
                    _Stage(first, _norm(config, 2 * wide, 1e-5), nn.ReLU()),
                    _Stage(_transposed(2 * wide, wide), _norm(config, wide), nn.ReLU()),
                ]
            )
            self.image = _transposed(wide, channels)
        self.norm = nn.BatchNorm2d(channels, affine=False)
        for layer in self.modules():
            _initialise(layer, random, config.body)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @property
    def blocks(self) -> dict[str, nn.Module]:
        """Modules, by path, whose outputs are the features that sample correlation looks at.

        What the linear layer and its batch norm give, and every activation function behind a
        hidden convolution (algorithms A.3.1).
        """
        return {f"stages.{index}": stage for index, stage in enumerate(self.stages)}

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) in normalised space.

        In training mode, a single image of up to 4 x 4 pixels is refused by the batch norms: it has
        one value per channel.

        Args:
            latents: (B, latent), standard normal.
            labels: (B,) classes, int64, or (B, classes) shares of them, float, which mix what is
                learned of each; None if and only if the generator has no condition.

        Raises:
            DataError: labels for a generator without condition, or none for another.
        """
        if (labels is None) != (self.config.condition == "none"):
            raise DataError(
                "this generator has no condition: it takes no labels"
                if labels is not None
                else f"this generator needs a label for every image (condition"
                f" {self.config.condition})"
            )
        x = latents
        if isinstance(self.embedding, nn.Embedding) and labels is not None:
            x = x * of_classes(labels, self.embedding.weight)
        for stage in self.stages:
            x = stage(x, labels)
        return self.norm(torch.tanh(self._cut(self.image(x))))

    def draw(self, count: int, random: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Latent vectors and labels for `count` images, on the generator's device.

        Args:
            count: how many.
            random: their source, on the CPU, so that devices do not matter.

        Returns:
            Standard normal latents (B, latent), and classes (B,), each as likely as any other; None
            without condition.
        """
        device = device_of(self)
        latents = torch.randn(count, self.config.latent, generator=random).to(device)
        if self.config.condition == "none":
            return latents, None
        return latents, torch.randint(self.config.classes, (count,), generator=random).to(device)

    def _cut(self, x: Tensor) -> Tensor:
        _, height, width = self.config.shape
        top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
        return x[:, :, top : top + height, left : left + width]


def of_classes(labels: Tensor, rows: Tensor) -> Tensor:
    """(B, D) the rows of `rows` (K, D) of classes (B,), or sums of them by shares (B, K)."""
    return labels @ rows if labels.is_floating_point() else F.embedding(labels, rows)


@torch.no_grad()
def generate(
    generator: Generator,
    count: int,
    random: torch.Generator,
    *,
    batch: int = 128,
    train_mode: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Images from `generator`, which stays as it is: mode, weights and running statistics.

    Args:
        generator: on any device.
        count: number of images, at least 1.
        random: source of latents and labels, on the CPU.
        batch: images made together, at most, in batches of about equal size.
        train_mode: normalise with the statistics of each batch, as GDFQ does, instead of the
            running ones. A batch then has at least two images, of which the second is dropped where
            one is wanted: a lone image would be normalised to itself.

    Returns:
        Images (N, C, H, W) and their classes (N,), None without condition; on the CPU.
    """
    parts = -(-count // batch)
    images: list[Tensor] = []
    labels: list[Tensor] = []
    with _mode(generator, train_mode):
        for part in range(parts):
            size = count // parts + (part < count % parts)
            latents, classes = generator.draw(max(size, 2) if train_mode else size, random)
            images.append(generator(latents, classes)[:size].cpu().contiguous())
            if classes is not None:
                labels.append(classes[:size].cpu())
    return torch.cat(images), torch.cat(labels) if labels else None


def save_generator(generator: Generator, path: Path | str, **metadata: Any) -> None:
    """Write a generator to one safetensors file, atomically.

    Args:
        generator: configuration, weights and running statistics are kept, its mode is not.
        path: file to write; one that exists is replaced.
        **metadata: what else to keep, JSON values.
    """
    state = {name: value.cpu().contiguous() for name, value in generator.state_dict().items()}
    described = {"config": generator.config.model_dump(mode="json"), "metadata": metadata}
    with atomic_path(path) as temporary:
        # One entry: safetensors writes several in no fixed order.
        save_file(state, temporary, {FORMAT: json.dumps(described, sort_keys=True)})


def load_generator(path: Path | str) -> tuple[Generator, dict[str, Any]]:
    """The generator that `save_generator` wrote, on the CPU in training mode, and its metadata.

    Raises:
        DataError: the file is missing, damaged, or not a generator of this project.
    """
    try:
        check_ordinary(path)
        with safe_open(path, framework="pt") as file:
            header: dict[str, str] = file.metadata() or {}
            if FORMAT not in header:
                raise DataError(f"{path} is not a generator written by datafree")
            described = json_of(header[FORMAT])
            config = GeneratorConfig.model_validate(described["config"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        held = sum(tensor.numel() for tensor in state.values())
        if _least_values(config) > held:
            raise ValueError(f"it claims more weights than the {held} it holds")
        generator = Generator(config, torch.Generator())
        generator.load_state_dict(state)
        return generator, dict(described["metadata"])
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged file can fail in any way
        raise DataError(f"cannot read generator {path}: {first_line(error)}") from None


def _least_values(config: GeneratorConfig) -> int:
    """No more values than a generator of this configuration has, and most of them."""
    channels, height, width = config.shape
    wide, narrow = config.width, config.width // 2
    linear = config.latent * wide * -(-height // 4) * -(-width // 4)
    convolutions = 9 * wide * wide + 9 * narrow * channels
    if config.body == "dcgan":
        convolutions = 32 * wide * wide + 16 * wide * channels
    conditions = {"none": 0, "embedding": config.latent, "batch_norm": 2 * wide}
    return linear + convolutions + config.classes * conditions[config.condition]


class _Projection(nn.Module):
    """A linear layer whose units are the pixels and channels of small images."""

    def __init__(
        self, latent: int, channels: int, base: tuple[int, int], *, bias: bool = True
    ) -> None:
        super().__init__()
        self.channels, self.base = channels, base
        units = channels * base[0] * base[1]
        # skip_init, here and elsewhere: torch would draw from the global random numbers.
        self.linear = nn.utils.skip_init(nn.Linear, latent, units, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        # Channels last from the start: the view costs nothing and convolutions are fastest.
        return self.linear(x).view(len(x), *self.base, self.channels).permute(0, 3, 1, 2)


class _Stage(nn.Module):
    """Layer, batch norm, activation function."""

    def __init__(
        self, layer: nn.Module, norm: nn.Module, activation: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.layer, self.norm = layer, norm
        self.activation = nn.Identity() if activation is None else activation

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        x = self.layer(x)
        conditional = isinstance(self.norm, ConditionalBatchNorm)
        return self.activation(self.norm(x, labels) if conditional else self.norm(x))


def _norm(config: GeneratorConfig, channels: int, eps: float | None = None) -> nn.Module:
    eps = config.eps if eps is None else eps
    if config.condition == "batch_norm":
        return ConditionalBatchNorm(config.classes, channels, eps)
    return nn.BatchNorm2d(channels, eps)


def _doubling(inputs: int, outputs: int) -> nn.Module:
    conv = nn.utils.skip_init(nn.Conv2d, inputs, outputs, 3, padding=1)
    return nn.Sequential(nn.Upsample(scale_factor=2.0), conv)


def _transposed(inputs: int, outputs: int) -> nn.Module:
    return nn.utils.skip_init(
        nn.ConvTranspose2d, inputs, outputs, 4, stride=2, padding=1, bias=False
    )


@torch.no_grad()
def _initialise(layer: nn.Module, random: torch.Generator, body: str) -> None:
    if isinstance(layer, nn.Embedding):
        layer.weight.normal_(generator=random)
    elif isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        if body == "dcgan":
            layer.weight.normal_(std=0.02, generator=random)
        else:
            initialise_uniform(layer, random)


@contextmanager
def _mode(generator: Generator, train: bool) -> Steps[None]:
    """Mode for a while, in which batch norms leave their running statistics alone."""
    before = [(module, module.training) for module in generator.modules()]
    norms = [module for module in generator.modules() if isinstance(module, nn.BatchNorm2d)]
    generator.train(train)
    # Without this flag they use the batch in training mode and the buffers otherwise, as with it.
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
        for module, training in before:
            module.training = training
