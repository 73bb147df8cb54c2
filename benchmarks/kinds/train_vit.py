"""Training a small ViT on CIFAR-10-J: a teacher without batch norms."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.kinds.base import Bench, Kind
from benchmarks.networks import decoded
from benchmarks.students import CIFAR10_MEAN, CIFAR10_STD, small_vit
from datafree.config import InputSpec, RunConfig
from datafree.data import open_labelled
from datafree.evaluate import top1
from datafree.files import atomic_path

_SHIFT = 4  # pixels that an image is moved by at most


class TrainViT(Kind):
    """Top-1 after the last epoch, chosen by no test image; the weights go to `results`.

    Weights are kept in half precision, and measured as kept. AdamW with a warm-up of a twentieth of
    all steps and a cosine down to zero, bfloat16, label smoothing. Images are moved, flipped, made
    brighter and darker, and mixed: half of all batches by MixUp, the others by CutMix. On a GPU
    where there is one.
    """

    epochs: int = 300
    """Times through the training images."""
    batch: int = 512
    """Images per step."""
    learning_rate: float = 2e-3
    """At its highest."""
    weight_decay: float = 0.05
    """Of AdamW."""
    smoothing: float = 0.1
    """Share of a label that goes to all classes alike."""

    def measure(self, config: RunConfig, bench: Bench) -> dict[str, Any]:
        """See the base class."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        spec = InputSpec(shape=(3, 32, 32), mean=CIFAR10_MEAN, std=CIFAR10_STD, classes=10)
        test = open_labelled(bench.place.data("cifar10jpeg_test.npz"), spec)
        pixels, truth = decoded(bench.place.data("cifar10jpeg_train.npz"))
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
        torch.manual_seed(config.seed)
        network = small_vit().to(device)
        inputs = ((pixels.float() / 255 - mean) / std).to(device)
        labels = F.one_hot(truth, 10).float().to(device)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay,
            fused=device.type == "cuda",
        )  # fmt: skip
        steps = self.epochs * (len(truth) // self.batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.learning_rate, steps, pct_start=0.05, cycle_momentum=False
        )
        with bench.progress("ViT", steps) as step:
            for _ in range(self.epochs):
                order = torch.randperm(len(truth), device=device)
                for chosen in order.split(self.batch)[: len(truth) // self.batch]:
                    images, wanted = mixed(changed(inputs[chosen]), labels[chosen])
                    with torch.autocast(device.type, torch.bfloat16):
                        loss = F.cross_entropy(
                            network(images), wanted, label_smoothing=self.smoothing
                        )
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    step(1)
        network = network.cpu().eval().half()
        with atomic_path(bench.place.house / "results" / "small_vit_cifar10.safetensors") as path:
            save_file(network.state_dict(), path)
        found = top1({"vit": network.float()}, test.batches(1000))
        return {"top1": found.top1["vit"], "test_images": found.images}


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
