from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import datafree
from datafree.config.outputs import Output
from datafree.errors import ConfigError, DataError
from datafree.evaluate import mean_iou
from networks import SPEC, images, randomized


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = (
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 4, 1),
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.head(torch.relu(self.norm(self.conv(x))))}


def test_mean_iou_by_hand() -> None:
    """Two classes on four pixels, one of which does not count."""
    head = Output(name="out", shape=(2, 1, 4), kind="dense_classes")
    logits = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0, 1.0]]]])  # says 0 0 1 1
    labels = torch.tensor([[[0, 1, 1, 255]]])
    found = mean_iou({"net": lambda _: logits.flatten(1)}, [(images(1), labels)], (head,))
    # class 0: one right, one too many: 1/2; class 1: one right, one missed: 1/2
    assert found.top1["net"] == pytest.approx(50.0) and found.images == 1


def labelled(folder: Path, labels: np.ndarray, size: tuple[int, int] = SPEC.shape[1:]) -> Path:
    path = folder / "test.npz"
    pixels = np.random.default_rng(0).integers(0, 255, (len(labels), *size, 3), np.uint8)
    np.savez(path, images=pixels, labels=labels)
    return path


def quantized(data: Path, **options: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    made = datafree.quantize(
        randomized(Dense(), images(32)).eval(), input_shape=SPEC.shape, images=8, method="noise",
        data=data, bits="W8A8", **options,
    )  # fmt: skip
    return made.metrics


def test_maps_are_measured_by_mean_iou(tmp_path: Path) -> None:
    labels = np.random.default_rng(1).integers(0, 4, (6, *SPEC.shape[1:]))
    found = quantized(labelled(tmp_path, labels))
    assert 0 < found["miou"]["student"] < 100 and found["test_images"] == 6
    assert found["task"] == "dense classes"


def test_a_measure_sees_all_that_the_network_returns_and_the_labels(tmp_path: Path) -> None:
    labels = np.random.default_rng(1).random((6, 2, 5)).astype(np.float32)
    seen: list[Any] = []

    def measure(returned: Any, wanted: Tensor) -> float:
        seen.append((returned["out"].shape, wanted.shape))
        return 3.5

    found = quantized(labelled(tmp_path, labels), metric=measure)
    assert found["metric"] == {"teacher": 3.5, "student": 3.5}
    assert seen[0][0][:2] == (6, 4) and seen[0][1] == (6, 2, 5)


MEASURE = """
def mean(returned, labels):
    return float(returned["out"].mean() + labels.float().mean())

def broken(returned, labels):
    return returned["masks"]
"""


def test_a_measure_of_a_file(tmp_path: Path) -> None:
    data = labelled(tmp_path, np.ones(6, np.int64))
    (tmp_path / "measure.py").write_text(MEASURE)
    found = quantized(data, metric=f"{tmp_path / 'measure.py'}:mean")
    assert set(found["metric"]) == {"teacher", "student"}
    with pytest.raises(ConfigError, match="the measure broken failed: KeyError"):
        quantized(data, metric=f"{tmp_path / 'measure.py'}:broken")
    with pytest.raises(ConfigError, match="there is no function"):
        quantized(data, metric=f"{tmp_path / 'measure.py'}:medium")


def test_labels_that_do_not_fit_maps(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a class for every pixel"):
        quantized(labelled(tmp_path, np.ones(6, np.int64)))
    large = np.ones((6, 40, 40), np.int64)
    with pytest.raises(DataError, match="sizes must be the same"):
        quantized(labelled(tmp_path, large, (40, 40)))


class Boxes(Dense):
    def forward(self, x: Tensor) -> Any:
        return self.head(torch.relu(self.norm(self.conv(x)))).flatten(2)


def test_numbers_need_a_measure(tmp_path: Path) -> None:
    data = labelled(tmp_path, np.ones(6, np.int64))
    with pytest.raises(DataError, match="give metric"):
        datafree.quantize(
            randomized(Boxes(), images(32)).eval(),
            input_shape=SPEC.shape,
            images=8,
            method="noise",
            data=data,
        )
