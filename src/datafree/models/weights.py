"""Weight files: read without unpickling objects, fitted to a network, checked for numbers."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.export import ExportedProgram

from datafree.errors import ModelError

_COUNTER = "num_batches_tracked"


def load_weights(model: nn.Module, path: Path) -> None:
    """Load the file at `path` into `model`, in place; all of it or nothing.

    A common prefix ``module.`` is removed; BN's batch counters, which inference ignores, may be
    absent.

    Args:
        model: the network.
        path: ``.safetensors``, or ``.pt``/``.pth`` holding a plain state dict.

    Raises:
        ModelError: the file cannot be read, or its tensors are not those of the network.
    """
    given = read_weights(path)
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in given and not key.endswith(_COUNTER)]
    foreign = [key for key in given if key not in wanted]
    shapes = [
        f"{key} is {tuple(given[key].shape)} in the file, {tuple(wanted[key].shape)} in the network"
        for key in wanted
        if key in given and given[key].shape != wanted[key].shape
    ]
    problems = [
        f"{len(found)} {kind} ({_some(found)})"
        for found, kind in (
            (missing, "tensors of the network are missing"),
            (foreign, "tensors are not of this network"),
            (shapes, "shapes differ"),
        )
        if found
    ]
    if problems:
        raise ModelError(f"{path} does not fit the network: {'; '.join(problems)}")
    model.load_state_dict(given, strict=False)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Names and tensors of a weight file, without the prefix ``module.``.

    Raises:
        ModelError: the file is missing, damaged, or holds something other than tensors by name.
    """
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise ModelError(f"cannot read weights from {path}: use .safetensors, .pt or .pth")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"cannot read weights from {path}: {error.strerror or error}") from None
    except pickle.UnpicklingError:
        raise ModelError(
            f"{path} is damaged or holds objects other than tensors, which are never unpickled: "
            "save model.state_dict() alone, best as .safetensors"
        ) from None
    except Exception as error:  # noqa: BLE001 - a damaged file can fail in any way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"cannot read weights from {path}: {reason}") from None
    return _by_name(content, path)


def check_finite(tensors: Iterable[tuple[str, Tensor]], name: str) -> None:
    """Refuse NaN and infinite values.

    Args:
        tensors: parameters and buffers by name.
        name: the model, for the message.

    Raises:
        ModelError: a tensor holds such a value; the message names the first.
    """
    for key, tensor in tensors:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            count = int((~torch.isfinite(tensor)).sum())
            raise ModelError(
                f"{name} cannot be quantized: {key} holds {count} NaN or infinite values "
                f"of {tensor.numel()}"
            )


def named_tensors(model: nn.Module | ExportedProgram) -> Iterable[tuple[str, Tensor]]:
    """Parameters, then buffers, of a module or an exported program, by name."""
    if isinstance(model, ExportedProgram):
        return ((key, value) for key, value in model.state_dict.items())
    return chain(model.named_parameters(), model.named_buffers())


def _by_name(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise ModelError(f"{path} does not hold a state dict (tensors by name)")
    state = cast("dict[str, Tensor]", dict(content))
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def _some(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")
