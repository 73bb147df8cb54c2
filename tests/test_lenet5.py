"""The networks of DFQF's Table 2, which only the benchmarks use."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from conftest import ROOT
from datafree.config import ModelConfig
from datafree.models import load_teacher

FILE = ROOT / "benchmarks" / "lenet5.py"
WEIGHTS = ROOT / "benchmarks" / "results" / "lenet5_mnist.safetensors"
INPUT: dict[str, Any] = {"input_shape": (1, 28, 28), "mean": (0.1307,), "std": (0.3081,)}

pytestmark = pytest.mark.skipif(not FILE.exists(), reason="no benchmarks in this copy")


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
