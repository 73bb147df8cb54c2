"""Training LeNet-5 on MNIST: the teacher of DFQF's Table 2 (98.92 there)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from benchmarks.kinds.base import Bench, Kind
from benchmarks.students import MNIST_MEAN, MNIST_STD, lenet5
from datafree.config import InputSpec, RunConfig
from datafree.data import open_labelled
from datafree.evaluate import top1
from datafree.files import atomic_path


class TrainLeNet5(Kind):
    """Top-1 after the last epoch, chosen by no test image; the weights go to `weights`.

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
        spec = InputSpec(shape=(1, 28, 28), mean=MNIST_MEAN, std=MNIST_STD, classes=10)
        train, test = (
            open_labelled(bench.place.data(f"mnist_{part}.npz"), spec) for part in ("train", "test")
        )
        torch.manual_seed(config.seed)
        network, inputs = lenet5(), train.take(np.arange(len(train)))
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )
        steps = self.epochs * -(-len(train) // self.batch)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        random = torch.Generator().manual_seed(config.seed)
        with bench.progress("LeNet-5", steps) as step:
            for _ in range(self.epochs):
                for chosen in torch.randperm(len(train), generator=random).split(self.batch):
                    loss = F.cross_entropy(network(inputs[chosen]), train.labels[chosen])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    step(1)
        found = top1({"lenet5": network.eval()}, test.batches(1000))
        with atomic_path(bench.place.weights(config.model)) as path:
            save_file(network.state_dict(), path)
        return {"top1": found.top1["lenet5"], "test_images": found.images}
