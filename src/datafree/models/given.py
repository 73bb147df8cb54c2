"""What callers hand over as a network: the networks among it, and a line for everything else."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from datafree.errors import ModelError
from datafree.models.unwrap import lacks_forward, unwrapped

EXPORTED = (
    "torch.export.save(torch.export.export(model.eval(), (images,),"
    " dynamic_shapes=({0: torch.export.Dim.AUTO},)), 'net.pt2')"
)
"""How a network is written as a file that needs no code, from a batch of at least 2 images."""

_STATES = ("state_dict", "model_state_dict", "model", "weights")


def recognised(given: object, what: str = "the model") -> nn.Module | ExportedProgram | str:
    """The network, or the source of one, in what a caller gave.

    Args:
        given: a module, which is taken out of its wrappers, an exported program, or a source by
            name or path, as it is.
        what: what it is to be, for messages.

    Raises:
        ModelError: it is something else; the message fits it.
    """
    if isinstance(given, ExportedProgram):
        return given
    if isinstance(given, str | Path):
        return str(given)
    if isinstance(given, nn.Module):
        network = unwrapped(given)
        _refuse_module(network, what)
        return network
    raise ModelError(f"{what} is {_described(given)}")


def _refuse_module(network: nn.Module, what: str) -> None:
    name = type(network).__name__
    if isinstance(network, torch.jit.ScriptModule):
        raise ModelError(
            f"{what} is TorchScript, which torch.export does not take: pass the network it was made"
            f" from, or a .pt2 file of that: {EXPORTED}"
        )
    if lacks_forward(network):
        parts = ", ".join(key for key, _ in network.named_children())
        raise ModelError(
            f"{what}, {name}, has no forward: pass the network in it"
            + (f" ({parts})" if parts else ", or give it one")
        )


def _described(given: object) -> str:
    """What `given` is, and what to do about it."""
    kind = type(given).__name__
    if given is None:
        return "None: does the function that builds it return it?"
    if inspect.isclass(given):
        arguments = "..." if required(given) else ""
        return f"the class {given.__name__}, not a network: pass {given.__name__}({arguments})"
    if isinstance(given, Mapping):
        return _mapping(cast("Mapping[Any, Any]", given))
    if isinstance(given, tuple | list):
        return _several(cast("tuple[Any, ...] | list[Any]", given), kind)
    if isinstance(given, Tensor):
        return "a tensor, not a network: pass the torch.nn.Module"
    if inspect.isroutine(given):
        name = getattr(given, "__name__", kind)
        return f"the function {name}, not a network: pass what it returns, {name}()"
    for name in ("model", "module", "net", "network"):
        inner = getattr(given, name, None)
        if isinstance(inner, nn.Module):
            return f"a {kind}, not a network: pass its .{name}"
    return (
        f"a {kind}, not a network: pass a torch.nn.Module, a program from torch.export, or a source"
        " by name (datafree models lists them)"
    )


def _mapping(given: Mapping[Any, Any]) -> str:
    """A state dict, a checkpoint with one or with a network in it, or any other mapping."""
    network = next((key for key, value in given.items() if isinstance(value, nn.Module)), None)
    if network is not None:
        return f"a dict with a network in it: pass {network!r} of it"
    nested = next((key for key in _STATES if isinstance(given.get(key), Mapping)), None)
    tensors = sum(isinstance(value, Tensor) for value in given.values())
    if nested is not None or tensors:
        found = "state" if nested is None else f"state[{nested!r}]"
        kind = f"a checkpoint, weights under {nested!r}" if nested else "a state dict, weights"
        return (
            f"{kind} without a network: build the network, load them with"
            f" model.load_state_dict({found}) and pass model"
        )
    return "a dict, not a network: pass a torch.nn.Module"


def _several(given: tuple[Any, ...] | list[Any], kind: str) -> str:
    places = [i for i, value in enumerate(given) if isinstance(value, nn.Module)]
    if len(places) == 1:
        return f"a {kind} of {len(given)}: pass the network in it alone, [{places[0]}]"
    if places:
        return (
            f"a {kind} of {len(places)} networks: pass one, or a module whose forward calls them"
            " (torch.nn.Sequential(*networks) where each takes what the one before returns)"
        )
    return f"a {kind}, not a network: pass a torch.nn.Module"


def required(built: Callable[..., Any]) -> list[str]:
    """The arguments that calling `built` needs, as far as its signature tells."""
    try:
        parameters = inspect.signature(built).parameters.values()
    except (TypeError, ValueError):
        return []
    named = (p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
    return [parameter.name for parameter in named if parameter.default is parameter.empty]
