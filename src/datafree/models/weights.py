"""Weight files: read without unpickling objects, fitted to a network, checked for numbers."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.export import ExportedProgram

from datafree.bounds import first_line
from datafree.errors import ModelError
from datafree.models.archive import check_torch_archive
from datafree.models.checkpoints import candidates, told
from datafree.models.files import foreign_classes, kind_of, pickled_network

_SCALAR = np.float64().__reduce__()[0]
_PLAIN: list[Any] = [
    argparse.Namespace,
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *(type(np.dtype(name)) for name in ("f2", "f4", "f8", "i4", "i8", "u8", "?")),
]
"""What trainings put beside weights and what holds nothing but values: arguments, best scores."""


def load_weights(model: nn.Module, path: Path) -> list[str]:
    """Load the file at `path` into `model`, in place; all of it or nothing.

    Where the tensors stand in a checkpoint, and what wrappers put before or into their names, is
    found by the names of the network; averaged weights are preferred. BN's batch counters, which
    inference ignores, may be absent.

    Args:
        model: the network.
        path: ``.safetensors``, or a checkpoint that ``torch.load(weights_only=True)`` reads.

    Returns:
        What a user should know: which weights were taken where there are several, what was left.

    Raises:
        ModelError: the file cannot be read, or its tensors are not those of the network.
    """
    wanted = model.state_dict()
    found = candidates(read_weights(path), wanted)
    if not found:
        raise ModelError(f"{path} does not hold a state dict (tensors by name)")
    fitting = [one for one in found if not one.problems(wanted)]
    if not fitting:
        nearest = max(found, key=lambda one: len(one.state.keys() & wanted.keys()))
        place = f" (its {nearest.place})" if nearest.place else ""
        raise ModelError(
            f"{path}{place} does not fit the network: {'; '.join(nearest.problems(wanted))}"
        )
    chosen = fitting[0]
    model.load_state_dict(chosen.state, strict=False)
    return [f"{path}: {line}" for line in told(chosen, fitting[1:], wanted)]


def read_weights(path: Path) -> Any:
    """What a weight file holds: tensors by name, or a checkpoint with them in it.

    Raises:
        ModelError: the file is missing, damaged, no weight file, or holds objects other than
            tensors and plain values.
    """
    if not path.is_file():
        reason = "it is a folder" if path.is_dir() else "No such file or directory"
        raise ModelError(f"cannot read weights from {path}: {reason}")
    kind = kind_of(path)
    if kind == "program":
        raise ModelError(f"{path} is a network with its weights: pass it as the model")
    if kind == "torchscript":
        raise ModelError(
            f"{path} is TorchScript: save torch.jit.load(path).state_dict() with torch.save, and"
            " pass that file"
        )
    try:
        if kind == "safetensors" or path.suffix == ".safetensors":
            return load_file(path)
        if zipfile.is_zipfile(path):
            check_torch_archive(path)
        with torch.serialization.safe_globals(_PLAIN):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ModelError(_unpicklable(path)) from None
    except Exception as error:  # noqa: BLE001 - a damaged file can fail in any way
        reason = first_line(error)
        raise ModelError(f"cannot read weights from {path}: {reason}") from None


def _unpicklable(path: Path) -> str:
    """Why a file that `torch.load` refuses is refused, and how to save it anew."""
    classes = foreign_classes(path)
    if not classes:
        return (
            f"cannot read weights from {path}: it is damaged, or not written by torch: use"
            " .safetensors, or save model.state_dict() with torch.save"
        )
    network = pickled_network(classes)
    what = f"a whole network ({network})" if network else f"objects ({', '.join(classes[:3])})"
    return (
        f"{path} holds {what}, not only tensors, which are never unpickled, since that runs code of"
        " the file: where it was written, save model.state_dict() alone, best as .safetensors"
    )


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
