"""Networks of other libraries by name: ``timm:NAME``, ``torchvision:NAME``, ``pytorchcv:NAME``.

The libraries are extras and imported only when one of their networks is asked for.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from datafree.errors import ModelError, UnknownNameError

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
"""What pytorchcv trained its CIFAR and SVHN networks with, by its own data set classes."""


@dataclass(frozen=True)
class Found:
    """A network and what its source knows about its input; None where it does not know.

    Attributes:
        model: the network.
        shape: channels, height, width; of another input its own, of several a shape each.
        mean: per channel.
        std: per channel.
        notes: what a user should know of how it was found, a line each.
    """

    model: nn.Module | ExportedProgram
    shape: tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Hub:
    """One library of networks.

    Attributes:
        description: one line for people.
        names: all names it knows.
        build: makes a network from the library, a name, whether pretrained, and keyword options.
    """

    description: str
    names: Callable[[ModuleType], Iterable[str]]
    build: Callable[[ModuleType, str, bool, dict[str, Any]], Found]


def fetch(hub: str, name: str, *, pretrained: bool, classes: int | None = None) -> Found:
    """Build network `name` of library `hub`.

    Args:
        hub: a key of `HUBS`.
        name: the library's name of the network.
        pretrained: with the library's weights, downloaded where they are not cached.
        classes: number of outputs of a network built without pretrained weights; None for its own.

    Raises:
        ModelError: the library is not installed or broken, or its weights cannot be had.
        UnknownNameError: the library has no such network.
    """
    library = _import(hub)
    names = set(HUBS[hub].names(library))
    if name not in names and not (hub == "timm" and name.partition(".")[0] in names):
        raise UnknownNameError(f"{hub} model", name, names)
    options = {"num_classes": classes} if classes is not None and not pretrained else {}
    try:
        return HUBS[hub].build(library, name, pretrained, options)
    except Exception as error:  # noqa: BLE001 - each library fails in its own ways
        reason = (str(error).strip().splitlines() or [""])[0]
        if pretrained:
            raise ModelError(
                f"cannot get the pretrained weights of {hub}:{name} ({type(error).__name__}: "
                f"{reason}); give them as a file: weights_file=file.safetensors"
            ) from None
        raise ModelError(f"{hub} cannot build {name}: {type(error).__name__}: {reason}") from None


def offered(name: str) -> list[str]:
    """The sources that end with `name`, in the libraries that are installed.

    ``resnet18``, or ``timm/resnet18``, gives ``timm:resnet18`` and ``torchvision:resnet18``.
    """
    found: list[str] = []
    bare = name.rpartition("/")[2]
    for hub, entry in HUBS.items():
        try:
            names = set(entry.names(_import(hub)))
        except Exception:  # noqa: BLE001 - a broken library offers nothing
            continue
        if bare in names or (hub == "timm" and bare.partition(".")[0] in names):
            found.append(f"{hub}:{bare}")
    return found


@cache
def operators_of_torchvision() -> torch.library.Library | None:
    """What torchvision needs to be imported beside a torch that it was not built for.

    Two operators of detectors that are looked up on import are declared without a kernel; they
    exist as long as the library that is returned. For what wants torchvision but none of its
    operators: converters, and classifiers of which nothing is detected.
    """
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return None  # told by whoever needs it
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


def _import(hub: str) -> ModuleType:
    module = "pytorchcv.model_provider" if hub == "pytorchcv" else hub
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != hub:
            raise ModelError(f"{hub} needs {error.name}: pip install 'datafree[{hub}]'") from None
        raise ModelError(f"{hub} is not installed: pip install 'datafree[{hub}]'") from None
    except (ImportError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ModelError(
            f"{hub} is installed but does not import ({reason}); torchvision must be built for the "
            "same torch: install both from one index, see https://pytorch.org/get-started"
        ) from None


def _timm_names(library: ModuleType) -> Iterable[str]:
    return library.list_models()


def _timm(library: ModuleType, name: str, pretrained: bool, options: dict[str, Any]) -> Found:
    model = library.create_model(name, pretrained=pretrained, **options)
    known = getattr(model, "pretrained_cfg", None) or {}
    return Found(
        model,
        _triple(known.get("input_size")),
        _floats(known.get("mean")),
        _floats(known.get("std")),
    )


def _torchvision_names(library: ModuleType) -> Iterable[str]:
    kinds = (library.models, library.models.detection)
    return [name for kind in kinds for name in library.models.list_models(module=kind)]


def _torchvision(
    library: ModuleType, name: str, pretrained: bool, options: dict[str, Any]
) -> Found:
    weights = getattr(library.models.get_model_weights(name), "DEFAULT", None)
    if pretrained and weights is None:
        raise ValueError("torchvision has none")
    detector = name in library.models.list_models(module=library.models.detection)
    if detector and not pretrained:
        options = {**options, "weights_backbone": None}
    model = library.models.get_model(name, weights=weights if pretrained else None, **options)
    if weights is None or detector:  # which prepares its images itself
        return Found(model)
    preset = weights.transforms()
    size = preset.crop_size
    height, width = (size[0], size[-1]) if isinstance(size, (list, tuple)) else (size, size)
    return Found(model, (3, int(height), int(width)), _floats(preset.mean), _floats(preset.std))


def _pytorchcv_names(library: ModuleType) -> Iterable[str]:
    return library._models


def _pytorchcv(library: ModuleType, name: str, pretrained: bool, options: dict[str, Any]) -> Found:
    model = library.get_model(name, pretrained=pretrained, **options)
    size = getattr(model, "in_size", None)
    shape = (3, int(size[0]), int(size[1])) if size is not None else None
    if name.endswith(("_cifar10", "_cifar100", "_svhn")):
        return Found(model, shape, *_CIFAR)
    if shape is not None and getattr(model, "num_classes", None) == 1000:
        return Found(model, shape, *_IMAGENET)
    return Found(model, shape)


def _triple(values: Iterable[int] | None) -> tuple[int, int, int] | None:
    if values is None:
        return None
    channels, height, width = values
    return int(channels), int(height), int(width)


def _floats(values: Iterable[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(value) for value in values)


HUBS: dict[str, Hub] = {
    "timm": Hub("a network of timm (extra: timm)", _timm_names, _timm),
    "torchvision": Hub(
        "a classifier or detector of torchvision (extra: torchvision)",
        _torchvision_names,
        _torchvision,
    ),
    "pytorchcv": Hub("a network of pytorchcv (extra: pytorchcv)", _pytorchcv_names, _pytorchcv),
}
"""The libraries by prefix."""
