"""Why a network does not take a batch of images, in one line: its shape, or something else."""

from __future__ import annotations

import inspect
import linecache
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

_SHAPES = re.compile(
    r"\b(shapes?|sizes?|dims?|dimensions?|channels?|heights?|widths?|kernel|resolution|stride"
    r"|broadcast\w*|out of range|number of elements)\b",
    re.IGNORECASE,
)
"""Words by which torch, and people who check their input, speak of shapes."""
_DEVICES = re.compile(r"\b(cuda|gpu|mps|device)\b", re.IGNORECASE)
_PRECISIONS = re.compile(r"\b(dtype|scalar type|c10::\w+|Half|BFloat16|Double)\b")
_INSTALLED = ("site-packages", "dist-packages")


def explained(
    error: Exception, call: Callable[..., Any], shape: tuple[int, int, int], name: str
) -> str:
    """What to tell of a network that failed on a batch of 2 images.

    Args:
        error: that it raised.
        call: the network, once more.
        shape: channels, height, width of the images it was given.
        name: of the network.

    Returns:
        One line: what was wrong, where, and what to do.
    """
    forward = call.forward if isinstance(call, nn.Module) else call
    known = _inputs(forward, name) or _unwritten(error, name)
    if known is not None:
        return known
    file, line, text = _place(error)
    reason = f"{_reason(error)} ({file}, line {line})" if file else _reason(error)
    if _DEVICES.search(str(error)):
        return (
            f"{name} asks for another device than the CPU, where networks are read: {reason}; let"
            " its tensors follow the images (x.device), or register them as buffers"
        )
    if _PRECISIONS.search(str(error)):
        return (
            f"{name} mixes precisions inside forward: {reason}; cast to the precision of its"
            " weights (weight.dtype) there"
        )
    sizes = ", ".join(map(str, shape))
    if _speaks_of_shapes(error, text):
        if _takes_one(call, shape):
            return (
                f"{name} takes one image of {sizes} and no batch: {reason}; write its reshapes so"
                " that they keep the batch, x.flatten(1) for x.view(1, -1)"
            )
        return (
            f"{name} does not take images of {sizes} (channels, height, width): {reason}; give the"
            " right input_shape, as C,H,W"
        )
    return f"{name} fails on a batch of images: {reason}; let it run on torch.zeros(2, {sizes})"


def _inputs(forward: Callable[..., Any], name: str) -> str | None:
    """What to say of a `forward` that does not take exactly one input."""
    try:
        parameters = list(inspect.signature(forward).parameters.values())
    except (TypeError, ValueError):
        return None
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in _STARRED]
    if len(needed) > 1:
        return (
            f"{name} takes {len(needed)} inputs ({', '.join(needed)}): wrap it in a module that"
            " takes one image batch and fills in the others"
        )
    if not any(p.kind in (*_POSITIONAL, inspect.Parameter.VAR_POSITIONAL) for p in parameters):
        return f"{name} takes no image: give its forward one argument, the batch of images"
    return None


_STARRED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _unwritten(error: Exception, name: str) -> str | None:
    """What to say of a network whose `forward` was never written."""
    if isinstance(error, NotImplementedError) and "forward" in str(error):
        return f"{name} has no forward of its own: pass the network inside it"
    return None


def _speaks_of_shapes(error: Exception, line: str) -> bool:
    """Whether a shape is the cause, as far as the message tells, or the `line` that asserts."""
    text = f"{error} {line}" if isinstance(error, AssertionError) else str(error)
    if "too many indices" in text:  # an image has four dimensions whatever its shape is
        return False
    kinds = (RuntimeError, ValueError, IndexError, AssertionError)
    return isinstance(error, kinds) and _SHAPES.search(text) is not None


def _takes_one(call: Callable[..., Any], shape: tuple[int, int, int]) -> bool:
    try:
        with torch.no_grad():
            call(torch.zeros(1, *shape))
    except Exception:  # noqa: BLE001 - a stranger's network may raise anything
        return False
    return True


def _reason(error: Exception) -> str:
    """The last line of what was said; with the kind of error where that tells more."""
    lines = str(error).strip().splitlines()
    said = lines[-1].strip() if lines else ""
    if isinstance(error, RuntimeError) and said:
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _place(error: Exception) -> tuple[str, int, str]:
    """File, line and source of the last step inside code that is not an installed package's."""
    found, step = ("", 0, ""), error.__traceback__
    while step is not None:
        frame = step.tb_frame
        path = Path(frame.f_code.co_filename)
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        installed = package in ("torch", "datafree") or any(p in path.parts for p in _INSTALLED)
        if path.suffix == ".py" and not installed:
            line = linecache.getline(str(path), step.tb_lineno).strip()
            found = (path.name, step.tb_lineno, line)
        step = step.tb_next
    return found
