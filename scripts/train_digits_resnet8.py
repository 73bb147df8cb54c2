"""Train the built-in teacher ``digits_resnet8`` and write its weights, its test split and a sample
of its training images.

Run from the repository root: ``python scripts/train_digits_resnet8.py`` (needs the ``dev`` group
for scikit-learn; half a minute on one core, the same files bit for bit on the same machine). The
split is stratified and fixed by its own seed. The hyper-parameters were chosen before the first
look at the test images and never changed, and the last epoch is what is kept. At the end the
batch-norm statistics are measured once more, exactly, over the training images without
augmentation, because image synthesis reads them.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

from datafree.zoo import ZOO
from datafree.zoo.digits_resnet8 import DigitsResNet8

ZOO_FOLDER = Path(__file__).resolve().parents[1] / "src" / "datafree" / "zoo"
TEST_SIZE = 360
SPLIT_SEED = 0
TRAIN_SAMPLE = 128  # training images that ship with the package, for `real` rows


def split_digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return train images, train labels, test images, test labels (uint8 NHWC, int64)."""
    pixels, target = load_digits(return_X_y=True)
    grey = np.asarray(pixels).reshape(-1, 8, 8, 1)  # 0..16
    images = np.rint(grey * 255 / 16).astype(np.uint8)
    labels = np.asarray(target).astype(np.int64)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=TEST_SIZE, stratify=labels, random_state=SPLIT_SEED
    )
    return images[train], labels[train], images[test], labels[test]


def normalise(images: np.ndarray, mean: float, std: float) -> Tensor:
    """Return uint8 NHWC images as a normalised float NCHW tensor."""
    scaled = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return (scaled - mean) / std


def augment(images: Tensor, background: float, generator: torch.Generator) -> Tensor:
    """Rotate, scale, shear and shift each image a little; the outside is background."""
    count = len(images)

    def uniform(limit: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * limit

    angle, shear = uniform(0.2), uniform(0.15)
    scale_x, scale_y = 1 + uniform(0.1), 1 + uniform(0.1)
    cos, sin = torch.cos(angle), torch.sin(angle)
    theta = torch.stack(
        [
            torch.stack([cos * scale_x, -sin + shear, uniform(0.2)], dim=1),
            torch.stack([sin, cos * scale_y, uniform(0.2)], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images - background, grid, align_corners=False) + background


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return top-1 accuracy in percent."""
    return float((model.eval()(images).argmax(1) == labels).float().mean() * 100)


@torch.no_grad()
def measure_bn(model: nn.Module, images: Tensor) -> None:
    """Set the batch-norm statistics to those of the whole training set, in one batch."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = 1.0
    model.train()(images)
    for norm in norms:
        norm.momentum = 0.1


def train(images: Tensor, labels: Tensor, background: float, epochs: int, seed: int) -> nn.Module:
    """Train with SGD, a one-cycle rate, label smoothing and small augmentation."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = DigitsResNet8()
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decay, "weight_decay": 5e-4}, {"params": plain, "weight_decay": 0.0}],
        lr=0.1,
        momentum=0.9,
        nesterov=True,
    )
    batch = 64
    steps = epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=steps)
    loss = torch.zeros(())
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(images), generator=generator)
        for start in range(0, len(images) - batch + 1, batch):
            chosen = order[start : start + batch]
            inputs = augment(images[chosen], background, generator)
            loss = F.cross_entropy(model(inputs), labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1:3d}  loss {loss.item():.4f}", flush=True)
    measure_bn(model, images)
    return model.eval()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as temporary:
        temporary.write(content)
        temporary.flush()
        os.fsync(temporary.fileno())
    Path(temporary.name).chmod(0o644)
    Path(temporary.name).replace(path)


def write_split(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Write images (uint8 NHWC) and labels (int64) to a compressed ``.npz``, atomically."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images, labels=labels)
    write_atomically(path, buffer.getvalue())


def main() -> None:
    """Train, report, write, and check what was written."""
    parser = argparse.ArgumentParser(description="Train the built-in digits_resnet8.")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ZOO_FOLDER)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    train_x, train_y, test_x, test_y = split_digits()
    entry = ZOO["digits_resnet8"]
    mean, std = float((train_x / 255).mean()), float((train_x / 255).std())
    print(f"train {len(train_x)}, test {len(test_x)}; mean {mean:.4f}, std {std:.4f}")
    if (round(mean, 4), round(std, 4)) != (entry.mean[0], entry.std[0]):
        raise SystemExit(f"ZOO states mean {entry.mean[0]}, std {entry.std[0]}: correct it first")
    mean, std = entry.mean[0], entry.std[0]
    images, labels = normalise(train_x, mean, std), torch.from_numpy(train_y)
    model = train(images, labels, -mean / std, arguments.epochs, arguments.seed)

    test_images, test_labels = normalise(test_x, mean, std), torch.from_numpy(test_y)
    print(f"train accuracy {accuracy(model, images, labels):.2f} %")
    print(f"test accuracy  {accuracy(model, test_images, test_labels):.2f} %")
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    write_atomically(arguments.output / "digits_resnet8.safetensors", save(state))
    write_split(arguments.output / "digits_test.npz", test_x, test_y)
    sample = slice(TRAIN_SAMPLE)
    write_split(arguments.output / "digits_train_sample.npz", train_x[sample], train_y[sample])


if __name__ == "__main__":
    main()
