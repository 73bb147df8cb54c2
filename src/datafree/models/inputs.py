"""What a network takes: names from its signature, shapes from the user or the program."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from datafree.config.base import build
from datafree.config.inputs import Input, Shape, is_plain, kind_of_input
from datafree.errors import ModelError

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_STARRED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
Numbers = Sequence[Any] | None
"""Means or deviations: of one input a number per channel, of several such a tuple for each."""


def argument_names(model: nn.Module | ExportedProgram | Callable[..., Any]) -> list[str]:
    """Names of the tensors that a network takes, those that have a default last."""
    if isinstance(model, ExportedProgram):
        return [str(name) for name in model.graph_signature.user_inputs]
    forward = model.forward if isinstance(model, nn.Module) else model
    try:
        parameters = inspect.signature(forward).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind in _POSITIONAL]


def needed_names(call: Callable[..., Any]) -> list[str] | None:
    """Names of the arguments that have to be given; None where nothing tells."""
    forward = call.forward if isinstance(call, nn.Module) else call
    try:
        parameters = list(inspect.signature(forward).parameters.values())
    except (TypeError, ValueError):
        return None
    return [p.name for p in parameters if p.default is p.empty and p.kind not in _STARRED]


def takes_something(call: Callable[..., Any]) -> bool:
    """Whether a network takes anything by its place, as far as its signature tells."""
    forward = call.forward if isinstance(call, nn.Module) else call
    try:
        parameters = inspect.signature(forward).parameters.values()
    except (TypeError, ValueError):
        return True
    return any(p.kind in (*_POSITIONAL, inspect.Parameter.VAR_POSITIONAL) for p in parameters)


def by_channels(numbers: Sequence[Any], channels: int) -> tuple[Any, ...]:
    """`numbers` as they are; one by itself is that of all `channels`."""
    return (*numbers,) * channels if len(numbers) == 1 else tuple(numbers)


def described_inputs(
    shapes: Sequence[Shape], names: Sequence[str], mean: Numbers, std: Numbers, network: str
) -> tuple[Input, ...]:
    """The inputs of a network; empty where it takes one image.

    Args:
        shapes: of one item, of every input.
        names: of as many arguments, or more, or fewer.
        mean: what was said of it; None where nothing was. Of several inputs a tuple for each, empty
            where nothing is known, or the numbers of the images alone.
        std: likewise.
        network: its name, for messages.

    Raises:
        ModelError: there are means or deviations for another number of inputs, or an image without.
        ConfigError: they do not fit an input.
    """
    if is_plain(shapes):
        return ()
    called = _unlike([*names[: len(shapes)], *(f"input_{k}" for k in range(len(names), 99))])
    means = _by_input(mean, shapes, "mean", network)
    stds = _by_input(std, shapes, "std", network)
    found: list[Input] = []
    for shape, name, own_mean, own_std in zip(shapes, called, means, stds, strict=False):
        kind = kind_of_input(shape)
        known = {"mean": own_mean, "std": own_std}
        missing = [option for option, value in known.items() if not value]
        if kind == "image" and missing:
            raise ModelError(
                f"{network} does not say how images are normalised that it takes as {name}: give"
                f" {' and '.join(missing)} (0 and 1 if they are not)"
            )
        count = shape[0] if shape else 1
        values = {
            "mean": by_channels(own_mean or (0.0,), count),
            "std": by_channels(own_std or (1.0,), count),
        }
        fields = {"name": name, "shape": shape, "kind": kind, **values}
        found.append(build(Input, fields, f"input of {network}"))
    return tuple(found)


def input_notes(inputs: Sequence[Input], mean: Numbers, std: Numbers) -> tuple[str, ...]:
    """A line on inputs whose values were taken to be standardised, since nobody said otherwise."""
    plain = [
        one.name for one in inputs
        if one.kind == "values" and not any(one.mean) and set(one.std) == {1.0}
    ]  # fmt: skip
    if not plain or (len(inputs) == 1 and (mean or std)):
        return ()
    verb = "is no image: its" if len(plain) == 1 else "are no images: their"
    return (
        f"{' and '.join(plain)} {verb} values are taken as standardised, of mean 0 and deviation 1,"
        " unless mean and std say otherwise",
    )


def unfilled(shapes: Sequence[Shape] | None, call: Callable[..., Any], name: str) -> str | None:
    """What to say where `call` needs more inputs than there are `shapes`, or takes fewer."""
    needed = needed_names(call)
    if needed is None:
        return None
    if not takes_something(call):
        return f"{name} takes no image: give its forward one argument, the batch of images"
    taken, given = argument_names(call), 0 if shapes is None else len(shapes)
    if given < len(needed) and len(needed) > 1:
        said = "none was" if not given else f"{given} {'was' if given == 1 else 'were'}"
        return (
            f"{name} takes {len(needed)} inputs ({', '.join(needed)}), and the shape of {said}"
            " given: give input_shape of each, 3,32,32;10 for an image and ten values"
        )
    if given > max(len(taken), 1) and not _takes_any(call):
        return (
            f"{name} takes {len(taken)} input{'s' * (len(taken) != 1)} ({', '.join(taken)}), and"
            f" {given} shapes were given: give input_shape of each"
        )
    return None


def _takes_any(call: Callable[..., Any]) -> bool:
    """Whether a network takes any number of tensors, ``*inputs``."""
    forward = call.forward if isinstance(call, nn.Module) else call
    kinds = [p.kind for p in inspect.signature(forward).parameters.values()]
    return inspect.Parameter.VAR_POSITIONAL in kinds


def _by_input(
    given: Numbers, shapes: Sequence[Shape], option: str, network: str
) -> list[tuple[float, ...]]:
    """`given` for every input, empty where nothing was said."""
    if not given:
        return [()] * len(shapes)
    if all(isinstance(one, tuple | list) for one in given):
        if len(given) != len(shapes):
            raise ModelError(
                f"{network} takes {len(shapes)} inputs, and {option} is given for {len(given)}:"
                " give it for each, or for the images alone"
            )
        return [tuple(one) for one in given]
    if len(shapes) == 1:
        return [tuple(given)]
    images = [k for k, shape in enumerate(shapes) if kind_of_input(shape) == "image"]
    channels = [shapes[k][0] for k in images]
    found: list[tuple[float, ...]] = [()] * len(shapes)
    if len(given) == sum(channels):
        start = 0
        for k, count in zip(images, channels, strict=True):
            found[k] = tuple(given[start : start + count])
            start += count
    elif channels and all(len(given) == count for count in channels):
        for k in images:
            found[k] = tuple(given)
    else:
        raise ModelError(
            f"{option} has {len(given)} values, and the images of {network} have"
            f" {' and '.join(map(str, channels)) or 'no'} channels: give {option} of every input,"
            " separated by semicolons"
        )
    return found


def _unlike(names: Sequence[str]) -> list[str]:
    """Names as arguments of Python, no two alike."""
    found: list[str] = []
    for name in names:
        plain = re.sub(r"\W", "_", name) or "input"
        plain = f"input_{plain}" if plain[0].isdigit() else plain
        while plain in found:
            plain += "_"
        found.append(plain)
    return found
