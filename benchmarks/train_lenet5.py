"""Train LeNet-5 on MNIST: the teacher of DFQF's Table 2 (98.92 there).

One thread and one seed; the weights are those of the last epoch, chosen by no test image. About
three minutes on one core.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
import torch.nn.functional as F
from common import RESULTS, SHARED, Record, environment
from lenet5 import MEAN, STD, lenet5
from safetensors.torch import save_file
from torch import Tensor, nn

from datafree.files import atomic_path

BATCH = 128
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-2


def images(part: str) -> tuple[Tensor, Tensor]:
    """Normalised (N, 1, 28, 28) and labels (N,) of ``train`` or ``test``."""
    archive = np.load(SHARED / "data" / f"mnist_{part}.npz")
    pixels = torch.from_numpy(archive["images"]).permute(0, 3, 1, 2).contiguous().float() / 255
    return (pixels - MEAN[0]) / STD[0], torch.from_numpy(archive["labels"])


def train(network: nn.Module, epochs: int, seed: int) -> None:
    """AdamW whose rate falls to zero along a cosine, batches in a random order."""
    inputs, labels = images("train")
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * -(-len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(epochs):
        started = time.perf_counter()
        for chosen in torch.randperm(len(labels), generator=generator).split(BATCH):
            loss = F.cross_entropy(network(inputs[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: {time.perf_counter() - started:.1f} s", flush=True)


@torch.no_grad()
def top1(network: nn.Module) -> float:
    """Percent of the test images."""
    inputs, labels = images("test")
    guesses = torch.cat([network(batch).argmax(1) for batch in inputs.split(1000)])
    return 100 * (guesses == labels).double().mean().item()


def main() -> None:
    """Train, measure, write the weights and a line of the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(True)
    network = lenet5()
    started = time.perf_counter()
    train(network, args.epochs, args.seed)
    seconds = time.perf_counter() - started
    accuracy = top1(network.eval())
    with atomic_path(RESULTS / "lenet5_mnist.safetensors") as path:
        save_file(network.state_dict(), path)
    Record(RESULTS / "lenet5_mnist.jsonl", ("epochs", "seed")).add(
        network="lenet5",
        top1=round(accuracy, 2),
        epochs=args.epochs,
        seed=args.seed,
        batch=BATCH,
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        seconds=round(seconds, 1),
        **environment(),
    )
    print(f"top-1 {accuracy:.2f} after {seconds:.1f} s")


if __name__ == "__main__":
    main()
