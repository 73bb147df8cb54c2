"""Networks of timm, torchvision and pytorchcv, and what they say of themselves."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.error import URLError

import pytest
from safetensors.torch import save_file
from torch import nn

from datafree.errors import UnknownNameError
from datafree.models import hubs
from teachers import Tiny, complaint, teacher


def _fail_import(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(name: str) -> ModuleType:
        raise error

    monkeypatch.setattr(hubs, "importlib", SimpleNamespace(import_module=fail))


@pytest.mark.parametrize("hub", ["timm", "torchvision", "pytorchcv"])
def test_missing_extra(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _fail_import(monkeypatch, ModuleNotFoundError(f"No module named {hub!r}", name=hub))
    message = complaint(lambda: teacher(f"{hub}:resnet18"))
    assert message == f"{hub} is not installed: pip install 'datafree[{hub}]'"


def test_broken_torchvision_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    _fail_import(monkeypatch, RuntimeError("operator torchvision::nms does not exist"))
    message = complaint(lambda: teacher("torchvision:resnet18"))
    assert "operator torchvision::nms does not exist" in message
    assert "built for the same torch" in message


def _fake_timm(fail: Exception | None = None) -> Any:
    def create_model(name: str, pretrained: bool, num_classes: int = 3) -> nn.Module:
        if pretrained and fail is not None:
            raise fail
        net: Any = Tiny(num_classes)
        net.pretrained_cfg = {"input_size": (1, 12, 12), "mean": (0.1,), "std": (0.2,)}
        return net

    return SimpleNamespace(
        create_model=create_model, list_models=lambda: ["tinynet_a", "tinynet_b"]
    )


def _with_library(monkeypatch: pytest.MonkeyPatch, library: Any) -> None:
    def give(name: str) -> Any:
        return library

    monkeypatch.setattr(hubs, "importlib", SimpleNamespace(import_module=give))


def test_timm_metadata_and_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    _with_library(monkeypatch, _fake_timm())
    spec = teacher("timm:tinynet_a.in1k").spec
    assert (spec.shape, spec.mean, spec.std, spec.classes) == ((1, 12, 12), (0.1,), (0.2,), 3)


def test_unknown_timm_model(monkeypatch: pytest.MonkeyPatch) -> None:
    _with_library(monkeypatch, _fake_timm())
    message = complaint(lambda: teacher("timm:tinynet_c"), UnknownNameError)
    assert "unknown timm model 'tinynet_c': did you mean tinynet_" in message


def test_failed_download_asks_for_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _with_library(monkeypatch, _fake_timm(URLError("no route to host")))
    message = complaint(lambda: teacher("timm:tinynet_a"))
    assert "no route to host" in message and "weights_file=file.safetensors" in message
    path = tmp_path / "w.safetensors"
    save_file(Tiny(5).state_dict(), path)
    assert teacher("timm:tinynet_a", weights_file=path, classes=5).spec.classes == 5


def test_torchvision_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    preset = SimpleNamespace(crop_size=[16], mean=(0.4,) * 3, std=(0.2,) * 3)
    weights = SimpleNamespace(DEFAULT=SimpleNamespace(transforms=lambda: preset))

    class Models:
        detection = "detection"

        @staticmethod
        def list_models(module: object) -> list[str]:
            return [] if module == "detection" else ["tiny"]

        @staticmethod
        def get_model_weights(name: str) -> object:
            return weights

        @staticmethod
        def get_model(name: str, weights: object) -> nn.Module:
            assert name == "tiny" and weights is not None
            return nn.Sequential(nn.Flatten(), nn.Linear(768, 6))

    _with_library(monkeypatch, SimpleNamespace(models=Models))
    spec = teacher("torchvision:tiny").spec
    assert (spec.shape, spec.mean, spec.classes) == ((3, 16, 16), (0.4,) * 3, 6)


@pytest.mark.parametrize(
    ("name", "size", "classes", "std"),
    [("resnet20_cifar100", 32, 100, 0.2023), ("resnet10", 224, 1000, 0.229)],
)
def test_pytorchcv_metadata(name: str, size: int, classes: int, std: float, tmp_path: Path) -> None:
    provider = pytest.importorskip("pytorchcv.model_provider")
    path = tmp_path / "w.safetensors"
    save_file(provider.get_model(name).state_dict(), path)
    spec = teacher(f"pytorchcv:{name}", weights_file=path).spec
    assert (spec.shape, spec.classes, spec.std[0]) == ((3, size, size), classes, std)


def test_unknown_pytorchcv_model() -> None:
    pytest.importorskip("pytorchcv")
    message = complaint(lambda: teacher("pytorchcv:resnet20_cifar11"), UnknownNameError)
    assert "resnet20_cifar10" in message
