"""Public networks by name, ``library/name``, with drawn weights: how they run, not how they see."""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from benchmarks.various import Made, Shape, built
from datafree.errors import UnknownNameError
from datafree.models import Teacher, from_module
from datafree.models.hubs import operators_of_torchvision

LIBRARIES = ("timm", "torchvision", "pytorchcv", "own")
_RGB = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_STATISTICS = 4  # images that batch norms get their statistics from


def is_public(name: str) -> bool:
    """Whether `name` is of one of `LIBRARIES`."""
    return name.partition("/")[0] in LIBRARIES


@lru_cache(maxsize=1)
def load_public(name: str) -> Teacher:
    """A network with weights drawn by seed 0, its batch norms set to what Gaussian images give.

    Args:
        name: ``timm/resnet18``, ``torchvision/googlenet``, ``pytorchcv/resnet20_cifar10``,
            ``own/yolo`` (`benchmarks.various`); ``timm/resnet18@64`` takes images of 64 pixels.

    Raises:
        UnknownNameError: the library has no such network.
    """
    library, _, short = name.partition("/")
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model, given = _built(library, short)
        shapes = _each(given)
        _settle_batch_norms(model, *(torch.randn(_STATISTICS, *shape) for shape in shapes))
    means, stds = zip(*(_normalisation(shape) for shape in shapes), strict=True)
    alone = len(shapes) == 1
    return from_module(
        model.eval(), input_shape=given, mean=means[0] if alone else means,
        std=stds[0] if alone else stds,
    )  # fmt: skip


def _each(given: Shape | tuple[Shape, ...]) -> tuple[Shape, ...]:
    """The shape of every input."""
    several = tuple(one for one in given if isinstance(one, tuple))
    return several or (tuple(one for one in given if isinstance(one, int)),)


def _normalisation(shape: Shape) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of images; nothing of what is none."""
    if len(shape) != 3:
        return (), ()
    return _RGB if shape[0] == len(_RGB[0]) else ((0.5,) * shape[0], (0.5,) * shape[0])


def _built(library: str, name: str) -> Made:
    """The network, and the shape of what it takes."""
    if library != "pytorchcv":
        operators_of_torchvision()
    if library == "own":
        return built(name)
    name, _, side = name.partition("@")
    found: Any
    if library == "timm":
        timm = importlib.import_module("timm")
        if not timm.is_model(name):
            raise UnknownNameError("network of timm", name, timm.list_models())
        found = timm.create_model(name)
        size = found.default_cfg["input_size"][-1]
    elif library == "torchvision":
        models = importlib.import_module("torchvision.models")
        if name not in models.list_models():
            raise UnknownNameError("network of torchvision", name, models.list_models())
        extra = {"init_weights": True, "aux_logits": False} if name == "googlenet" else {}
        found, size = models.get_model(name, **extra), 224
    else:
        provider = importlib.import_module("pytorchcv.model_provider")
        found, size = provider.get_model(name, pretrained=False), 32 if "cifar10" in name else 224
    size = int(side or size)
    return found, (3, size, size)


def _settle_batch_norms(model: nn.Module, *inputs: torch.Tensor) -> None:
    """Give batch norms the statistics of one pass, so that no layer's values grow or vanish."""
    norms = [m for m in model.modules() if isinstance(m, _NORMS)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        model(*inputs)
    for norm in norms:
        norm.momentum = 0.1
