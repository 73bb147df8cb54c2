"""What is read off and written to an exported program's graph before it is canonical."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload  # pyright: ignore[reportPrivateUsage]

aten = torch.ops.aten


def writes(node: fx.Node) -> bool:
    """Whether `node` changes one of its arguments in place."""
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable  # pyright: ignore[reportPrivateUsage]


def casts_nothing(node: fx.Node) -> bool:
    """Whether `node` casts a tensor to the numbers it has, as ``x.to(layer.weight.dtype)`` does."""
    if getattr(node.target, "overloadpacket", None) is not aten.to:
        return False
    told = (torch.dtype, torch.device, fx.Node)  # what else may be asked for is a copy or a layout
    if not all(isinstance(argument, told) for argument in node.args):
        return False
    sources = node.all_input_nodes
    before, after = sources[0].meta.get("val") if sources else None, node.meta.get("val")
    return (
        isinstance(before, Tensor)
        and isinstance(after, Tensor)
        and (before.dtype, before.device) == (after.dtype, after.device)
        and node.kwargs.keys() <= {"dtype", "device"}
    )


def caller(node: fx.Node) -> tuple[str, str]:
    """Path and class name of the module whose code made `node`; empty where nobody knows.

    The second call of a module has a path of its own in exported programs, ``conv@1``: it is the
    path of the first here.
    """
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, kind = (str(stack[-1][0]), str(stack[-1][1])) if stack else ("", "")
    return ".".join(part.partition("@")[0] for part in path.split(".")), kind


def attribute(module: nn.Module, path: str) -> Any:
    """The parameter, buffer or module at `path`."""
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    return value


def attach(root: nn.Module, path: str, value: Any) -> None:
    """Put `value` at `path`, with empty modules on the way where there are none."""
    *parents, name = path.split(".")
    for part in parents:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        root.register_buffer(name, value)
    else:
        setattr(root, name, value)
