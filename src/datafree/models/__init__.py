"""Teachers: trained networks with everything that must be known about their input.

A teacher comes from the built-in zoo, from another library by name (``timm:``, ``torchvision:``,
``pytorchcv:``), from a ``.pt2`` or ``.onnx`` file that brings no Python code, from a factory
function of the user's, or from memory (`from_module`). Whatever the source does not know about the
input is asked for by name.
How a stranger's file is read without running code from it is told in `datafree.models.archive` and
`datafree.models.onnx`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import TensorArgument

from datafree.config import InputSpec, ModelConfig, build
from datafree.config.outputs import Task
from datafree.errors import ModelError, UnknownNameError
from datafree.models.archive import load_archive
from datafree.models.hubs import HUBS, Found, fetch
from datafree.models.outputs import described
from datafree.models.weights import check_finite, load_weights, named_tensors
from datafree.tensors import state_digest
from datafree.user_code import module_at
from datafree.zoo import ZOO

__all__ = ["Teacher", "from_module", "load_teacher", "sources"]

_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")

_SHOWN = 2  # black images that tell what a network returns


@dataclass(frozen=True)
class Teacher:
    """A full-precision network, in eval mode, and what it takes and returns.

    Attributes:
        model: a module, or the exported program of a ``.pt2`` file.
        spec: input shape, normalisation, number of classes.
        name: the source it came from, for reports.
        digest: SHA-256 over names and bytes of its parameters and buffers.
        remark: what its source says that a run should tell; empty where it says nothing.
    """

    model: nn.Module | ExportedProgram
    spec: InputSpec
    name: str
    digest: str
    remark: str = ""


def sources() -> list[tuple[str, str]]:
    """What `ModelConfig.source` may be: (name or pattern, description), the zoo first."""
    zoo = [(name, entry.description) for name, entry in ZOO.items()]
    hubs = [(f"{prefix}:NAME", hub.description) for prefix, hub in HUBS.items()]
    return [
        *zoo,
        *hubs,
        ("FILE.pt2", "a program written by torch.export.save; no code is needed or run"),
        ("FILE.onnx", "a float network as ONNX; no code is needed or run (extra: onnx)"),
        ("package.module:factory", "a function without arguments that returns the network"),
        ("path/to/file.py:factory", "the same, from a file"),
    ]


def load_teacher(config: ModelConfig, *, pretrained: bool = True) -> Teacher:
    """Find, build and check the network that `config` describes.

    Options of `config` take precedence over what the source says of itself.

    Args:
        config: of the network.
        pretrained: with the weights of the library it comes from, unless `config` names others.

    Raises:
        UnknownNameError: no such network; the nearest names are offered.
        ModelError: the network cannot be had, its weights do not fit or are not finite, its
            input is not known or wrong, or it returns no tensor of images.
        ConfigError: the input description contradicts itself.
    """
    found = _find(config, pretrained)
    if isinstance(found.model, nn.Module):
        found.model.eval()
    shape = config.input_shape or found.shape
    if shape is None:
        raise ModelError(
            f"{config.source} does not say what input it takes: give input_shape as C,H,W"
        )
    mean, std = _normalisation(config, found)
    teacher = _teacher(found.model, config.source, shape, mean, std, config.classes, config.task)
    return replace(teacher, remark=found.remark)


def from_module(
    model: nn.Module,
    *,
    input_shape: tuple[int, int, int],
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    classes: int | None = None,
    task: Task | None = None,
) -> Teacher:
    """A teacher from a module in memory; the module itself is never touched, a copy is taken.

    Args:
        model: the trained network; its copy is put on the CPU and in eval mode.
        input_shape: channels, height, width.
        mean: per channel, subtracted from images scaled to 0..1. None means 0.
        std: per channel, divided by. None means 1. With both left out the network is taken to
            expect images scaled to 0..1.
        classes: number of classes; None reads it off the output.
        task: what the network says of an image: `classes`, `dense` (a class at every position) or
            `values` (numbers); None guesses from what it returns.

    Raises:
        ModelError: a parameter or buffer is not finite, the network does not take this shape, or
            it returns no tensor with the images along its first dimension.
        ConfigError: the input description contradicts itself.
    """
    own = copy.deepcopy(model).cpu().eval()
    channels = input_shape[0]
    filled = (mean or (0.0,) * channels, std or (1.0,) * channels)
    return _teacher(own, type(model).__name__, input_shape, *filled, classes, task)


def _teacher(  # noqa: PLR0913 - all that must be known of a network
    model: nn.Module | ExportedProgram,
    name: str,
    shape: tuple[int, int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    classes: int | None,
    task: Task | None,
) -> Teacher:
    values = {"shape": shape, "mean": mean, "std": std, "classes": classes or 1}
    spec = build(InputSpec, values, f"input of {name}")
    check_finite(named_tensors(model), name)
    heads, plain = described(_returned(model, shape, name), _SHOWN, shape, task, name)
    first = next((head for head in heads if head.kind != "values"), heads[0])
    measured = 1 if first.kind == "values" else first.shape[0]
    if classes is not None and classes != measured:
        raise ModelError(f"{name} returns {measured} classes, not {classes}: leave out classes")
    labelled = plain and first.kind in ("classes", "one_logit")
    spec = spec.model_copy(update={"classes": measured, "outputs": () if labelled else heads})
    state = model.state_dict if isinstance(model, ExportedProgram) else model.state_dict()
    return Teacher(model=model, spec=spec, name=name, digest=state_digest(state))


def _normalisation(
    config: ModelConfig, found: Found
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    mean, std = config.mean or found.mean, config.std or found.std
    if mean is None or std is None:
        missing = {"mean": mean, "std": std}
        options = " and ".join(option for option, value in missing.items() if value is None)
        raise ModelError(
            f"{config.source} does not say how its images are normalised: give {options} "
            "(0 and 1 if they are not)"
        )
    return mean, std


def _dims(sizes: tuple[int | torch.SymInt, ...]) -> str:
    return ", ".join(str(size) for size in sizes)


def _returned(model: nn.Module | ExportedProgram, shape: tuple[int, int, int], name: str) -> Any:
    """What the network returns for two black images; its tensors know the steps they come from."""
    call = model.module() if isinstance(model, ExportedProgram) else model
    try:
        with torch.enable_grad():
            # Not a leaf: a network may write into its images.
            return call(torch.zeros(_SHOWN, *shape, requires_grad=True) * 1)
    except Exception as error:  # noqa: BLE001 - a stranger's network may raise anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        raise ModelError(
            f"{name} does not take images of {_dims(shape)} (channels, height, width): {reason}; "
            "give the right input_shape, as C,H,W"
        ) from None


def _find(config: ModelConfig, pretrained: bool) -> Found:
    source = config.source
    prefix, _, rest = source.partition(":")
    if source in ZOO:
        return _from_zoo(config)
    if prefix in HUBS:
        wanted = pretrained and config.weights_file is None
        found = fetch(prefix, rest, pretrained=wanted, classes=config.classes)
        return _with_weights(found, config)
    if source.endswith(".pt2"):
        return _from_archive(config)
    if source.endswith(".onnx"):
        return _from_onnx(config)
    if ":" in source:
        return _with_weights(Found(_call_factory(source)), config)
    if source.endswith(_WEIGHT_SUFFIXES):
        raise ModelError(
            f"{source} holds weights without a network: pass package.module:factory with "
            f"{source} as weights_file, or a .pt2 file from torch.export.save"
        )
    raise UnknownNameError("model", source, [name for name, _ in sources()])


def _from_zoo(config: ModelConfig) -> Found:
    entry = ZOO[config.source]
    model = entry.load() if config.weights_file is None else entry.factory()
    return _with_weights(Found(model, entry.input_shape, entry.mean, entry.std), config)


def _with_weights(found: Found, config: ModelConfig) -> Found:
    if config.weights_file is not None and isinstance(found.model, nn.Module):
        load_weights(found.model, config.weights_file)
    return found


def _from_onnx(config: ModelConfig) -> Found:
    from datafree.models.onnx import load_onnx  # imports onnx and what reads it, seconds

    _refuse_weights(config)
    return load_onnx(Path(config.source), config.input_shape)


def _refuse_weights(config: ModelConfig) -> None:
    if config.weights_file is not None:
        raise ModelError(f"{config.source} brings its own weights: leave out weights_file")


def _from_archive(config: ModelConfig) -> Found:
    _refuse_weights(config)
    program = load_archive(Path(config.source))
    sizes = _input_sizes(program, config.source)
    if isinstance(sizes[0], int):
        raise ModelError(
            f"{config.source} was exported for batches of {sizes[0]} only: export it again with "
            "torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim.AUTO},)) "
            "and at least 2 images"
        )
    fixed = sizes[1:]
    asked = config.input_shape or fixed
    if any(
        isinstance(size, int) and size != other for size, other in zip(fixed, asked, strict=True)
    ):
        raise ModelError(
            f"{config.source} was exported for images of {_dims(fixed)} (channels, height, width), "
            f"not {_dims(asked)}: leave out input_shape"
        )
    return Found(program, _all_fixed(fixed))


def _all_fixed(sizes: tuple[int | torch.SymInt, ...]) -> tuple[int, int, int] | None:
    channels, height, width = sizes
    if isinstance(channels, int) and isinstance(height, int) and isinstance(width, int):
        return channels, height, width
    return None


def _input_sizes(program: ExportedProgram, name: str) -> tuple[int | torch.SymInt, ...]:
    """Sizes of the one image input, symbolic where they are free."""
    inputs = [
        item for item in program.graph_signature.input_specs if item.kind.name == "USER_INPUT"
    ]
    nodes = {node.name: node for node in program.graph.nodes}
    values = [
        nodes[item.arg.name].meta.get("val")
        for item in inputs
        if isinstance(item.arg, TensorArgument)
    ]
    if (
        len(inputs) != 1
        or len(values) != 1
        or not isinstance(values[0], Tensor)
        or values[0].ndim != 4
    ):
        raise ModelError(f"{name} must take one batch of images (batch, channels, height, width)")
    return tuple(values[0].shape)


def _call_factory(source: str) -> nn.Module:
    place, _, name = source.rpartition(":")
    module = _import_place(place, source)
    factory: Callable[[], Any] | None = getattr(module, name, None)
    if factory is None:
        functions = [
            key for key, value in vars(module).items() if callable(value) and key[0] != "_"
        ]
        raise UnknownNameError(f"function of {place}", name, functions)
    try:
        model = factory()
    except Exception as error:
        raise ModelError(f"{source}() failed: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{source}() returned {type(model).__name__}, not a torch.nn.Module")
    return model


def _import_place(place: str, source: str) -> ModuleType:
    try:
        return module_at(place)
    except FileNotFoundError:
        raise ModelError(f"there is no file {place} to take {source} from") from None
    except Exception as error:
        raise ModelError(f"cannot import {place}: {type(error).__name__}: {error}") from error
