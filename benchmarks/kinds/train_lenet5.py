"""Training LeNet-5 on MNIST: the teacher of DFQF's Table 2 (98.92 there)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.kinds.base import Bench, Kind
from benchmarks.students import MNIST_MEAN, MNIST_STD, lenet5
from datafree.config import RunConfig
from datafree.files import atomic_path


class TrainLeNet5(Kind):
    """Top-1 after the last epoch, chosen by no test image; the weights go to `results`.

    AdamW whose rate falls to zero along a cosine, batches in a random order.
    """

    epochs: int = 10
    """Times through the training images; three minutes on one core."""
    batch: int = 128
    """Images per step."""
    learning_rate: float = 2e-3
    """At the beginning."""
    weight_decay: float = 1e-2
    """Of AdamW."""

    def measure(self, config: RunConfig, bench: Bench) -> dict[str, Any]:
        """See the base class."""
        torch.manual_seed(config.seed)
        network = lenet5()
        inputs, labels = _images(bench, "train")
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )
        steps = self.epochs * -(-len(labels) // self.batch)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        random = torch.Generator().manual_seed(config.seed)
        with bench.progress("LeNet-5", steps) as step:
            for _ in range(self.epochs):
                for chosen in torch.randperm(len(labels), generator=random).split(self.batch):
                    loss = F.cross_entropy(network(inputs[chosen]), labels[chosen])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    step(1)
        found = _top1(network.eval(), *_images(bench, "test"))
        with atomic_path(bench.place.results / "lenet5_mnist.safetensors") as path:
            save_file(network.state_dict(), path)
        return {"top1": round(found, 2)}


def _images(bench: Bench, part: str) -> tuple[Tensor, Tensor]:
    """Normalised (N, 1, 28, 28) and labels (N,) of ``train`` or ``test``."""
    with np.load(bench.place.data(f"mnist_{part}.npz")) as archive:
        pixels = torch.from_numpy(archive["images"]).permute(0, 3, 1, 2).contiguous()
        labels = torch.from_numpy(archive["labels"])
    return (pixels.float() / 255 - MNIST_MEAN[0]) / MNIST_STD[0], labels


@torch.no_grad()
def _top1(network: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    guesses = torch.cat([network(batch).argmax(1) for batch in inputs.split(1000)])
    return 100 * (guesses == labels).double().mean().item()
