"""Networks with one logit: two classes, of which the second is meant where it is positive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import datafree
from datafree.evaluate import compare, top1
from datafree.losses import class_logits, distillation
from datafree.registry import available, load
from datafree.synthesis.base import Synthesizer

TINY = {"warmup": 3, "iterations": 3, "batch_size": 8, "width": 8, "checks": 1, "holdout": 16}

INPUT: dict[str, Any] = {"input_shape": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3}


class Binary(nn.Module):
    """A small network whose answers on noise are about half and half."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 1)
        for _ in range(20):
            self.features(2 * torch.rand(32, 3, 8, 8) - 1)
        with torch.no_grad():
            self.head.weight *= 20
            self.head.bias -= self.head(
                self.eval().features(2 * torch.rand(256, 3, 8, 8) - 1)
            ).median()

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.stem(x))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def test_probabilities_are_those_of_the_sigmoid() -> None:
    logits = torch.randn(5, 1)
    expected = torch.sigmoid(logits)
    torch.testing.assert_close(class_logits(logits).softmax(1)[:, 1:], expected)
    several = torch.randn(5, 3)
    assert class_logits(several) is several


def test_measures_are_not_constant() -> None:
    logits = torch.tensor([[2.0], [-1.0], [3.0], [-2.0]])
    other = torch.tensor([[1.0], [1.0], [3.0], [-2.0]])
    found = compare(lambda _: logits, lambda _: other, [torch.zeros(4, 1)])
    assert found.agreement == 75
    p, q = torch.sigmoid(logits), torch.sigmoid(other)
    kl = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    assert found.kl == pytest.approx(float(kl), rel=1e-5)
    labels = torch.tensor([1, 0, 0, 0])
    assert top1({"a": lambda _: logits}, [(torch.zeros(4), labels)]).top1["a"] == 75
    assert float(distillation(other, logits, 1.0)) == pytest.approx(float(kl), rel=1e-5)
    loss = F.binary_cross_entropy_with_logits(logits[:, 0], labels.float())
    assert float(F.cross_entropy(class_logits(logits), labels)) == pytest.approx(float(loss))


@pytest.mark.integration
def test_fewer_bits_agree_less_and_labels_are_0_and_1(tmp_path: Path) -> None:
    network, data = Binary(), tmp_path / "test.npz"
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.no_grad():
        labels = (network(images)[:, 0] > 0).long().numpy()
    np.savez(data, images=pixels, labels=labels)
    found = {
        bits: datafree.quantize(
            network, **INPUT, bits=bits, method="noise", images=32, holdout=64, data=data
        ).metrics["top1"]
        for bits in ("W8A8", "W2A2")
    }
    assert found["W8A8"]["teacher"] == 100
    assert found["W8A8"]["student"] > 90 > found["W2A2"]["student"]


@pytest.mark.integration
@pytest.mark.parametrize("method", available("datafree.synthesis"))
def test_images_can_be_made(method: str) -> None:
    if method in ("generator", "subset"):
        pytest.skip("asks a file")
    if load("datafree.synthesis", method, Synthesizer).needs_attention:
        pytest.skip("looks at attention, which this network has none of")
    options = {} if method == "noise" else {"iterations": 3}
    made = datafree.synthesize(Binary(), **INPUT, method=method, method_options=options, images=8)
    assert bool(torch.isfinite(made.images).all())


@pytest.mark.integration
@pytest.mark.parametrize("training", ("gdfq", "dsg_qat", "dfqf", "adadfq", "qimera"))
def test_trainings_move_the_student(training: str) -> None:
    result = datafree.quantize(
        Binary(), **INPUT, bits="W4A4", training=training, training_options=TINY, images=16,
        holdout=16,
    )  # fmt: skip
    assert result.metrics["held_out"]["kl"] > 0


@pytest.mark.integration
@pytest.mark.parametrize("training", ("fixed_set", "intraq", "hast", "synq"))
def test_trainings_on_images_move_the_student(training: str) -> None:
    options = {"iterations": 3, "batch_size": 4, "checks": 1}
    result = datafree.quantize(
        Binary(), **INPUT, bits="W4A4", training=training, training_options=options, images=16,
        method="noise", holdout=16,
    )  # fmt: skip
    assert result.metrics["held_out"]["kl"] > 0
