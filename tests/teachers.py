"""Networks as users name them, and what is said of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from datafree.config import ModelConfig
from datafree.errors import ModelError
from datafree.models import Teacher, load_teacher

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
NORMAL = {"mean": (0.0,), "std": (1.0,)}


class Tiny(nn.Module):
    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bn(self.conv(x)).relu().mean((2, 3)))


def tiny() -> nn.Module:
    return Tiny()


def not_a_module() -> str:
    return "network"


def broken() -> nn.Module:
    raise ValueError("no such checkpoint")


HERE = f"{Path(__file__)}:"


def teacher(source: str, **options: Any) -> Teacher:
    return load_teacher(ModelConfig(source=source, **options))


def complaint(call: Callable[[], object], kind: type[Exception] = ModelError) -> str:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


class Evil:
    """Unpickling this makes a folder: a witness that code of the file ran."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.witness),)
