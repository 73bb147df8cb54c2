"""Networks that only the benchmarks use: DFQF's Table 2, and what teachers are distilled into."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from conftest import ROOT
from datafree.config import ModelConfig
from datafree.models import load_teacher

FILE = ROOT / "benchmarks" / "students.py"
WEIGHTS = ROOT / "benchmarks" / "results" / "lenet5_mnist.safetensors"
INPUT: dict[str, Any] = {"input_shape": (1, 28, 28), "mean": (0.1307,), "std": (0.3081,)}


@pytest.mark.parametrize(
    ("factory", "count"),
    [
        ("lenet5", 6 * 26 + 16 * 151 + 120 * 401 + 84 * 121 + 10 * 85),
        ("lenet5_half", 3 * 26 + 8 * 76 + 60 * 201 + 42 * 61 + 10 * 43),
    ],
)
def test_widths(factory: str, count: int) -> None:
    teacher = load_teacher(ModelConfig(source=f"{FILE}:{factory}", **INPUT))
    assert teacher.spec.classes == 10
    assert isinstance(teacher.model, nn.Module)
    assert sum(parameter.numel() for parameter in teacher.model.parameters()) == count


def test_the_trained_weights_fit() -> None:
    load_teacher(ModelConfig(source=f"{FILE}:lenet5", weights_file=WEIGHTS, **INPUT))


def test_students_map_images_of_their_teachers_to_classes(shared: Path) -> None:
    del shared  # one of them is built from it
    for factory, shape in (("plain_digits", (1, 8, 8)), ("resnet8", (3, 32, 32))):
        given: dict[str, Any] = {"input_shape": shape, "mean": (0.0,) * shape[0]}
        config = ModelConfig(source=f"{FILE}:{factory}", **given, std=(1.0,) * shape[0])
        assert load_teacher(config).spec.classes == 10
