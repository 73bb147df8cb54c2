"""Training a network on CIFAR-10-J: a small ViT, a MobileNetV2 and a VGG."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks import students
from benchmarks.kinds.base import Bench, Kind
from benchmarks.networks import TRAINED_HERE, decoded
from benchmarks.students import CIFAR10_MEAN, CIFAR10_STD
from datafree.config import InputSpec, RunConfig
from datafree.data import open_labelled
from datafree.evaluate import top1
from datafree.files import atomic_path
from datafree.tensors import fast_layout

_SHIFT = 4  # pixels that an image is moved by at most


class TrainCifar(Kind):
    """Top-1 after the last epoch, chosen by no test image; the weights go to `weights`.

    Weights are kept in half precision, and measured as kept. The rate goes up, and down to zero
    along a cosine; bfloat16, label smoothing. Images are moved, flipped, made brighter and darker,
    and perhaps mixed: half of all batches by MixUp, the others by CutMix. On a GPU where there is
    one. The defaults are a ViT's.
    """

    epochs: int = 300
    """Times through the training images."""
    batch: int = 512
    """Images per step."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with Nesterov's momentum of 0.9."""
    learning_rate: float = 2e-3
    """At its highest."""
    warm_up: float = 0.05
    """Share of all steps in which the rate goes up."""
    weight_decay: float = 0.05
    """Of the optimizer."""
    smoothing: float = 0.1
    """Share of a label that goes to all classes alike."""
    mixing: bool = True
    """Mix the images of a batch with one another."""

    def measure(self, config: RunConfig, bench: Bench) -> dict[str, Any]:
        """See the base class."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        spec = InputSpec(shape=(3, 32, 32), mean=CIFAR10_MEAN, std=CIFAR10_STD, classes=10)
        test = open_labelled(bench.place.data("cifar10jpeg_test.npz"), spec)
        pixels, truth = decoded(bench.place.data("cifar10jpeg_train.npz"))
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
        torch.manual_seed(config.seed)
        built: nn.Module = getattr(students, TRAINED_HERE[config.model][0])()
        network = fast_layout(built.to(device))
        inputs = ((pixels.float() / 255 - mean) / std).to(device)
        labels = F.one_hot(truth, 10).float().to(device)
        self._train(network, inputs, labels, bench)
        network = network.cpu().eval().half()
        with atomic_path(bench.place.weights(config.model)) as path:
            save_file({name: t.contiguous() for name, t in network.state_dict().items()}, path)
        found = top1({"network": network.float()}, test.batches(1000))
        return {"top1": found.top1["network"], "test_images": found.images}

    def _train(self, network: nn.Module, inputs: Tensor, labels: Tensor, bench: Bench) -> None:
        device, whole = inputs.device, len(inputs) // self.batch
        optimizer = self._optimizer(network, fused=device.type == "cuda")
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.learning_rate, self.epochs * whole, pct_start=self.warm_up,
            cycle_momentum=False,
        )  # fmt: skip
        if device.type == "cpu":
            strided_filters_in_float(network)
        with bench.progress("CIFAR", self.epochs * whole) as step:
            for _ in range(self.epochs):
                order = torch.randperm(len(inputs), device=device)
                for chosen in order.split(self.batch)[:whole]:
                    images, wanted = changed(inputs[chosen]), labels[chosen]
                    if self.mixing:
                        images, wanted = mixed(images, wanted)
                    with torch.autocast(device.type, torch.bfloat16):
                        loss = F.cross_entropy(
                            network(images), wanted, label_smoothing=self.smoothing
                        )
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    step(1)

    def _optimizer(self, network: nn.Module, *, fused: bool) -> torch.optim.Optimizer:
        given: dict[str, Any] = {
            "lr": self.learning_rate, "weight_decay": self.weight_decay, "fused": fused
        }  # fmt: skip
        if self.optimizer == "sgd":
            return torch.optim.SGD(network.parameters(), momentum=0.9, nesterov=True, **given)
        return torch.optim.AdamW(network.parameters(), **given)


def strided_filters_in_float(network: nn.Module) -> None:
    """Leave depthwise layers with a stride out of autocast.

    Backwards they take ten times as long in bfloat16 on a processor; all others half as long.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.groups > 1 and layer.stride != (1, 1):
            layer.forward = _in_float(layer)


def _in_float(layer: nn.Conv2d) -> Callable[..., Tensor]:
    plain = layer.forward

    def forward(x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return plain(x.float())

    return forward


def changed(images: Tensor) -> Tensor:
    """Images of shape (N, C, H, W), each moved, perhaps mirrored, and scaled by 0.7 to 1.3."""
    count, _, height, width = images.shape
    device = images.device
    padded = F.pad(images, (_SHIFT,) * 4)
    top, left = (torch.randint(2 * _SHIFT + 1, (count, 1), device=device) for _ in range(2))
    columns = left + torch.arange(width, device=device)
    mirrored = torch.rand(count, 1, device=device) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)[:, None, :]
    rows = (top + torch.arange(height, device=device))[:, :, None]
    which = torch.arange(count, device=device)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[which, rows, columns].permute(0, 3, 1, 2)
    return moved * (0.7 + 0.6 * torch.rand(count, 1, 1, 1, device=device))


def mixed(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """A batch mixed with itself in another order: MixUp (alpha 0.8) or CutMix, one in two.

    Args:
        images: of shape (N, C, H, W).
        labels: probabilities, of shape (N, classes).
    """
    order = torch.randperm(len(images), device=images.device)
    if torch.rand(()) < 0.5:
        share = float(torch.distributions.Beta(0.8, 0.8).sample())
        return images.lerp(images[order], 1 - share), labels.lerp(labels[order], 1 - share)
    height, width = images.shape[2:]
    side = float(torch.rand(())) ** 0.5
    tall, wide = int(side * height), int(side * width)
    top, left = int(torch.randint(height - tall + 1, ())), int(torch.randint(width - wide + 1, ()))
    cut = images.clone()
    window = (..., slice(top, top + tall), slice(left, left + wide))
    cut[window] = images[order][window]
    return cut, labels.lerp(labels[order], tall * wide / (height * width))
