"""Training a network with one logit on PneumoniaMNIST: the hospital's case."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.kinds.base import Bench, Kind
from benchmarks.students import XRAY_MEAN, XRAY_STD, pneumonia
from datafree.config import RunConfig
from datafree.files import atomic_path


class TrainPneumonia(Kind):
    """Percent of test images on the right side of 0, after the last epoch.

    AdamW whose rate falls to zero along a cosine; images are moved by up to two pixels; both
    answers count the same, of which one is three times as frequent. No test image chooses anything.
    """

    epochs: int = 12
    """Times through the training images; two minutes on one core."""
    batch: int = 64
    """Images per step."""
    learning_rate: float = 3e-3
    """At the beginning."""
    weight_decay: float = 5e-2
    """Of AdamW."""

    def measure(self, config: RunConfig, bench: Bench) -> dict[str, Any]:
        """See the base class."""
        with np.load(bench.place.data("pneumoniamnist28.npz")) as archive:
            images, labels = _part(archive, "train")
            test, truth = _part(archive, "test")
        rare = (1 - labels).sum() / labels.sum()
        torch.manual_seed(config.seed)
        network = pneumonia()
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )
        steps = self.epochs * -(-len(images) // self.batch)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        with bench.progress("X-rays", steps) as step:
            for _ in range(self.epochs):
                for chosen in torch.randperm(len(images)).split(self.batch):
                    shift = torch.randint(-2, 3, (2,)).tolist()
                    logits = network(torch.roll(images[chosen], shift, (2, 3)))
                    loss = F.binary_cross_entropy_with_logits(
                        logits[:, 0], labels[chosen], pos_weight=rare
                    )
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    step(1)
        network.eval()
        with torch.no_grad():
            right = (network(test)[:, 0] > 0) == (truth > 0)
        with atomic_path(bench.place.weights(config.model)) as path:
            save_file(network.state_dict(), path)
        return {"top1": 100 * float(right.double().mean()), "test_images": len(test)}


def _part(archive: Any, name: str) -> tuple[Tensor, Tensor]:
    """Normalised images (N, 1, 28, 28) and their labels (N,), 0 and 1."""
    pixels = torch.from_numpy(archive[f"{name}_images"]).permute(0, 3, 1, 2).float() / 255
    labels = torch.from_numpy(archive[f"{name}_labels"]).float()
    return (pixels - XRAY_MEAN[0]) / XRAY_STD[0], labels
