"""Teachers: trained networks with everything that must be known about their input.

A teacher comes from the built-in zoo, from another library by name (``timm:``, ``torchvision:``,
``pytorchcv:``), from a ``.pt2`` or ``.onnx`` file that brings no Python code, from a factory
function of the user's, or from memory (`from_module`). Whatever the source does not know about the
input is asked for by name.
How a stranger's file is read without running code from it is told in `datafree.models.archive` and
`datafree.models.onnx`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.export import ExportedProgram

from datafree.bounds import check_shape
from datafree.config import InputSpec, ModelConfig, build
from datafree.config.inputs import Shape, is_plain, kind_of_input, packed_fields, shapes_of
from datafree.config.outputs import Task
from datafree.detection.detectors import Detector
from datafree.detection.precision import MeanAveragePrecision
from datafree.errors import ModelError, UnknownNameError
from datafree.models.archive import load_archive
from datafree.models.detectors import apart, measure_of
from datafree.models.files import SUFFIXES, files_beside, kind_of, refused_file
from datafree.models.given import recognised, required
from datafree.models.hubs import HUBS, Found, fetch, offered
from datafree.models.inputs import (
    Numbers,
    argument_names,
    by_channels,
    described_inputs,
    input_notes,
    unfilled,
)
from datafree.models.outputs import described
from datafree.models.precision import in_float32
from datafree.models.programs import Asked, found_program
from datafree.models.trial import explained
from datafree.models.unwrap import copied, settled, unwrap_inside
from datafree.models.weights import check_finite, load_weights, named_tensors
from datafree.tensors import state_digest
from datafree.user_code import module_at
from datafree.zoo import ZOO

__all__ = ["Teacher", "from_module", "load_teacher", "sources"]

_SHOWN = 2  # black images that tell what a network returns


@dataclass(frozen=True)
class Teacher:
    """A full-precision network, in eval mode, and what it takes and returns.

    Attributes:
        model: a module, or the exported program of a ``.pt2`` file.
        spec: input shape, normalisation, number of classes.
        name: the source it came from, for reports.
        digest: SHA-256 over names and bytes of its parameters and buffers.
        notes: what became of it on the way that a user should know, a line each.
        boxes: of the heads of a detector that came whole, what measures the boxes they tell.
    """

    model: nn.Module | ExportedProgram
    spec: InputSpec
    name: str
    digest: str
    notes: tuple[str, ...] = ()
    boxes: MeanAveragePrecision | None = None


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
        settled(found.model)
    found, detector = apart(found)
    shapes = _shapes(config.input_shape, found, config.source, "give input_shape as C,H,W")
    if is_plain(shapes):
        mean, std = _normalisation(config, found)
    else:
        mean, std = config.mean or found.mean, config.std or found.std
    classes = config.classes if detector is None else None  # it was built with
    teacher = _teacher(found.model, config.source, shapes, mean, std, classes, config.task)
    return _with_boxes(replace(teacher, notes=(*found.notes, *teacher.notes)), detector)


def from_module(
    model: nn.Module | ExportedProgram,
    *,
    input_shape: tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None,
    mean: tuple[float, ...] | tuple[tuple[float, ...], ...] | None = None,
    std: tuple[float, ...] | tuple[tuple[float, ...], ...] | None = None,
    classes: int | None = None,
    task: Task | None = None,
) -> Teacher:
    """A teacher from a module in memory; the module itself is never touched, a copy is taken.

    Args:
        model: the trained network, which is taken out of its wrappers and copied, on the CPU, in
            eval mode and in float32; or a program of `torch.export`.
        input_shape: channels, height, width, or the shape of another input, of several inputs one
            each; None where a program says so itself.
        mean: per channel, subtracted from images scaled to 0..1. None means 0. Of several inputs
            those of the images, or a tuple for each.
        std: per channel, divided by. None means 1. With both left out the network is taken to
            expect images scaled to 0..1.
        classes: number of classes; None reads it off the output.
        task: what the network says of an image: `classes`, `dense` (a class at every position) or
            `values` (numbers); None guesses from what it returns.

    Raises:
        ModelError: `model` is no network, a parameter or buffer is not finite, the network does not
            take this shape, or it returns no tensor with the images along its first dimension.
        ConfigError: the input description contradicts itself.
    """
    network = recognised(model)
    name = type(network).__name__
    if isinstance(network, str):
        raise ModelError(f"{network!r} is the name of a network: load_teacher finds it")
    if isinstance(network, ExportedProgram):
        found = found_program(network, name, input_shape)
    else:
        found = Found(copied(network))
    found, detector = apart(found)
    mean, std = mean or found.mean, std or found.std
    shapes = _shapes(input_shape, found, name, "pass input_shape=(C, H, W)")
    if is_plain(shapes):
        mean, std = mean or (0.0,), std or (1.0,)
    else:
        images = sum(shape[0] for shape in shapes if kind_of_input(shape) == "image")
        mean, std = mean or (0.0,) * images, std or (1.0,) * images
    return _with_boxes(_teacher(found.model, name, shapes, mean, std, classes, task), detector)


def _with_boxes(teacher: Teacher, detector: Detector | None) -> Teacher:
    """`teacher` with what measures its boxes, where it is of a detector."""
    if detector is None:
        return teacher
    measure = measure_of(detector, teacher.spec)
    return replace(teacher, notes=(*teacher.notes, detector.note), boxes=measure)


def _shapes(asked: Asked, found: Found, name: str, otherwise: str) -> tuple[Shape, ...]:
    """The shape of every input, as asked for or as the network says.

    Raises:
        ModelError: neither tells.
    """
    shapes = shapes_of(asked or found.shape)
    if shapes is not None:
        try:
            for shape in shapes:
                check_shape(shape)
        except ValueError as error:
            raise ModelError(f"{name}: {error}") from None
        return shapes
    call = None if isinstance(found.model, ExportedProgram) else found.model
    several = None if call is None else unfilled(None, call, name)
    raise ModelError(several or f"{name} does not say what input it takes: {otherwise}")


def _teacher(  # noqa: PLR0913 - all that must be known of a network
    model: nn.Module | ExportedProgram,
    name: str,
    shapes: tuple[Shape, ...],
    mean: Numbers,
    std: Numbers,
    classes: int | None,
    task: Task | None,
) -> Teacher:
    inputs = described_inputs(shapes, argument_names(model), mean, std, name)
    channels = shapes[0][0] if shapes[0] else 1
    one = {"mean": by_channels(mean or (), channels), "std": by_channels(std or (), channels)}
    given = packed_fields(inputs) if inputs else {"shape": shapes[0], **one}
    spec = build(InputSpec, {**given, "classes": classes or 1}, f"input of {name}")
    model, note = in_float32(model, shapes, name)
    check_finite(named_tensors(model), name)
    image = next((shape for shape in shapes if kind_of_input(shape) == "image"), ())
    heads, plain = described(_returned(model, shapes, name), _SHOWN, image, task, name)
    first = next((head for head in heads if head.kind != "values"), heads[0])
    measured = 1 if first.kind == "values" else first.shape[0]
    if classes is not None and classes != measured:
        raise ModelError(f"{name} returns {measured} classes, not {classes}: leave out classes")
    labelled = plain and first.kind in ("classes", "one_logit")
    spec = spec.model_copy(update={"classes": measured, "outputs": () if labelled else heads})
    state = model.state_dict if isinstance(model, ExportedProgram) else model.state_dict()
    notes = (() if note is None else (note,)) + input_notes(inputs, mean, std)
    return Teacher(model=model, spec=spec, name=name, digest=state_digest(state), notes=notes)


def _normalisation(config: ModelConfig, found: Found) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    mean, std = config.mean or found.mean, config.std or found.std
    if mean is None or std is None:
        missing = {"mean": mean, "std": std}
        options = " and ".join(option for option, value in missing.items() if value is None)
        raise ModelError(
            f"{config.source} does not say how its images are normalised: give {options} "
            "(0 and 1 if they are not)"
        )
    return mean, std


def _returned(model: nn.Module | ExportedProgram, shapes: tuple[Shape, ...], name: str) -> Any:
    """What the network returns for two black images; its tensors know the steps they come from."""
    call = model.module() if isinstance(model, ExportedProgram) else model
    given = [torch.zeros(_SHOWN, *shape, requires_grad=True) for shape in shapes]
    # Nothing goes back: what the steps would keep for that, all activations, is let go of.
    steps_only = saved_tensors_hooks(lambda _: None, lambda _: torch.empty(0))
    try:
        with torch.enable_grad(), steps_only:
            # No leaves: a network may write into its images.
            return call(*(tensor * 1 for tensor in given))
    except Exception as error:  # noqa: BLE001 - a stranger's network may raise anything
        raise ModelError(explained(error, call, shapes, name)) from None


def _find(config: ModelConfig, pretrained: bool) -> Found:
    source = config.source
    prefix, _, rest = source.partition(":")
    if source in ZOO:
        return _from_zoo(config)
    if prefix in HUBS:
        wanted = pretrained and config.weights_file is None
        found = fetch(prefix, rest, pretrained=wanted, classes=config.classes)
        return _with_weights(found, config)
    path = Path(source)
    if source.endswith(".pt2") or (path.is_file() and kind_of(path) == "program"):
        return _from_archive(config)
    if source.endswith(".onnx"):
        return _from_onnx(config)
    if ":" in source:
        return _from_factory(config)
    if source.endswith(SUFFIXES) or path.exists():
        raise refused_file(path)
    known = offered(source) or [*files_beside(path), *(name for name, _ in sources())]
    raise UnknownNameError("model", source, known)


def _from_zoo(config: ModelConfig) -> Found:
    entry = ZOO[config.source]
    model = entry.load() if config.weights_file is None else entry.factory()
    return _with_weights(Found(model, entry.input_shape, entry.mean, entry.std), config)


def _with_weights(found: Found, config: ModelConfig) -> Found:
    if config.weights_file is None:
        return found
    if not isinstance(found.model, nn.Module):
        raise ModelError(f"{config.source} brings its own weights: leave out weights_file")
    notes = load_weights(found.model, config.weights_file)
    return replace(found, notes=(*found.notes, *notes))


def _from_factory(config: ModelConfig) -> Found:
    model = _call_factory(config.source)
    if isinstance(model, ExportedProgram):
        return _with_weights(found_program(model, config.source, config.input_shape), config)
    return _with_weights(Found(unwrap_inside(model)), config)


def _from_onnx(config: ModelConfig) -> Found:
    from datafree.models.onnx import load_onnx  # imports onnx and what reads it, seconds

    _refuse_weights(config)
    found = load_onnx(Path(config.source), shapes_of(config.input_shape))
    given = [name for name in ("mean", "std") if getattr(config, name) is not None]
    if found.std is not None and given:
        raise ModelError(
            f"{config.source} takes pixels from 0 to 255 as bytes, and normalises them itself:"
            f" leave out {' and '.join(given)}"
        )
    return found


def _refuse_weights(config: ModelConfig) -> None:
    if config.weights_file is not None:
        raise ModelError(f"{config.source} brings its own weights: leave out weights_file")


def _from_archive(config: ModelConfig) -> Found:
    _refuse_weights(config)
    path = Path(config.source)
    if path.is_file() and kind_of(path) in ("torchscript", "pickle", "safetensors"):
        raise refused_file(path)
    return found_program(load_archive(path), config.source, config.input_shape)


def _call_factory(source: str) -> nn.Module | ExportedProgram:
    place, _, name = source.rpartition(":")
    module = _import_place(place, source)
    factory: Any = getattr(module, name, None)
    if factory is None:
        functions = [
            key for key, value in vars(module).items() if callable(value) and key[0] != "_"
        ]
        raise UnknownNameError(f"function of {place}", name, functions)
    if isinstance(factory, nn.Module | ExportedProgram) or not callable(factory):
        model, what = factory, source  # the network itself
    else:
        what = f"what {source}() returned"
        if needed := required(factory):
            raise ModelError(
                f"{source} needs {', '.join(needed)}: name a function that takes nothing and"
                " returns the network"
            )
        try:
            model = factory()
        except Exception as error:
            raise ModelError(f"{source}() failed: {type(error).__name__}: {error}") from error
    if isinstance(model, str):
        raise ModelError(f"{source}() returned str, not a torch.nn.Module")
    network = recognised(model, what)
    assert not isinstance(network, str)  # noqa: S101 - refused above
    return network


def _import_place(place: str, source: str) -> ModuleType:
    try:
        return module_at(place)
    except FileNotFoundError:
        raise ModelError(f"there is no file {place} to take {source} from") from None
    except Exception as error:
        raise ModelError(f"cannot import {place}: {type(error).__name__}: {error}") from error
