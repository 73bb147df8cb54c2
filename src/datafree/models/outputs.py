"""What a network returns for images: names, shapes, and what it most likely means."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import (
    SUPPORTED_NODES,
    GetAttrKey,
    MappingKey,
    SequenceKey,
    tree_flatten_with_path,
)

from datafree.config.outputs import Output, Task, kind_of
from datafree.errors import ModelError

_BEHIND_EMBEDDINGS = ("NativeBatchNorm", "NativeLayerNorm", "CudnnBatchNorm", "Div")
"""What torch calls the last step of networks that return features of an image."""


def described(
    returned: Any, batch: int, image: tuple[int, ...], task: Task | None, name: str
) -> tuple[tuple[Output, ...], bool]:
    """What a network returned for `batch` images, tensor by tensor.

    Args:
        returned: by the network.
        batch: number of images.
        image: (C, H, W) of one; empty where the network takes none.
        task: what the user says of it; None guesses.
        name: of the network, for messages.

    Returns:
        Its tensors of images in the order pytrees have them, and whether the network returns but
        one tensor (batch, numbers).

    Raises:
        ModelError: there is no tensor of images; a tensor of complex numbers.
    """
    register_dataclass(returned)
    found: list[Output] = []
    leaves, _ = tree_flatten_with_path(returned)
    for path, leaf in leaves:
        if not isinstance(leaf, Tensor) or leaf.ndim == 0 or len(leaf) != batch:
            continue
        if leaf.is_complex():
            raise ModelError(f"{name} returns complex numbers{_where(path)}: return their parts")
        shape = tuple(leaf.shape[1:])
        kind = kind_of(shape, task, image)
        if not leaf.is_floating_point() or (task is None and _is_embedding(leaf)):
            kind = "values"
        found.append(Output(name=_named(path) or "output", shape=shape, kind=kind))
    if not found:
        raise ModelError(
            f"{name} returns no tensor with the images along its first dimension, but"
            f" {_shown(returned)}: let it return one"
        )
    if len(found) > 1 and task is None and not any(o.name in _LOGITS for o in found):
        # Several maps without a name that says classes are heads of a detector.
        found = [
            o.model_copy(update={"kind": "values"}) if o.kind == "dense_classes" else o
            for o in found
        ]
    return tuple(found), isinstance(returned, Tensor) and len(found[0].shape) == 1


_LOGITS = ("logits", "out", "aux")


def register_dataclass(returned: Any) -> None:
    """Let torch.export take a network that returns a dataclass of the user's."""
    kind = type(returned)
    if dataclasses.is_dataclass(kind) and kind not in SUPPORTED_NODES:
        torch.export.register_dataclass(kind)


def _is_embedding(tensor: Tensor) -> bool:
    """Whether the last step of a vector is one that no classifier ends with."""
    step = tensor.grad_fn
    return tensor.ndim == 2 and step is not None and step.name().startswith(_BEHIND_EMBEDDINGS)


def _named(path: tuple[Any, ...]) -> str:
    words: list[str] = []
    for key in path:
        if isinstance(key, MappingKey):
            words.append(str(key.key))  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
        elif isinstance(key, GetAttrKey):
            words.append(key.name)
        elif isinstance(key, SequenceKey):
            words.append(str(key.idx))
        else:
            words.append(str(key))
    return ".".join(words)


def _where(path: tuple[Any, ...]) -> str:
    return f" at {_named(path)}" if path else ""


def _shown(returned: Any) -> str:
    if isinstance(returned, Tensor):
        return f"a tensor of {tuple(returned.shape)}"
    return f"a {type(returned).__name__}"
