"""Why a network does not take a batch of images, in one line: its shape, or something else."""

from __future__ import annotations

import linecache
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from datafree.config.inputs import Shape, is_plain, words
from datafree.models.inputs import unfilled

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
    error: Exception, call: Callable[..., Any], shapes: Sequence[Shape], name: str
) -> str:
    """What to tell of a network that failed on a batch of 2 images.

    Args:
        error: that it raised.
        call: the network, once more.
        shapes: of one item, of every input it was given.
        name: of the network.

    Returns:
        One line: what was wrong, where, and what to do.
    """
    known = unfilled(shapes, call, name) or _unwritten(error, name)
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
    sizes = "; ".join(", ".join(map(str, shape)) for shape in shapes)
    what = "images of" if is_plain(shapes) else "inputs of"
    told = words(shapes[0]) if len(shapes) == 1 else sizes
    if _speaks_of_shapes(error, text):
        if _takes_one(call, shapes):
            item = "image" if is_plain(shapes) else "item"
            return (
                f"{name} takes one {item} of {sizes} and no batch: {reason}; write its reshapes so"
                " that they keep the batch, x.flatten(1) for x.view(1, -1)"
            )
        form = ", as C,H,W" if is_plain(shapes) else ""
        return f"{name} does not take {what} {told}: {reason}; give the right input_shape{form}"
    zeros = ", ".join(f"torch.zeros(2, {', '.join(map(str, shape))})" for shape in shapes)
    batch = "a batch of images" if is_plain(shapes) else "a batch of its inputs"
    return f"{name} fails on {batch}: {reason}; let it run on {zeros}"


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


def _takes_one(call: Callable[..., Any], shapes: Sequence[Shape]) -> bool:
    try:
        with torch.no_grad():
            call(*(torch.zeros(1, *shape) for shape in shapes))
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
