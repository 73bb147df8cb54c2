"""A student's numbers from its file, which may have been damaged or edited."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, fx, nn

from datafree.errors import ConfigError
from datafree.quant.modules import QUANTIZED, Quantizer

_RANGE = ("scale", "zero_point")


def take_state(student: fx.GraphModule, path: Path) -> None:
    """Give a blank `student` the parameters and ranges in the file at `path`.

    Args:
        student: of the same network and scheme; changed.
        path: written by `datafree.runs.folder.save_student`.

    Raises:
        ConfigError: the file cannot be read, is of another student, or holds numbers that no
            student has; the message names layer and number.
    """
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path.parent} holds no finished student: {error}") from None
    for place, layer in student.named_modules():
        # Bias correction gives a bias to layers that had none.
        if isinstance(layer, QUANTIZED) and layer.bias is None and f"{place}.bias" in state:
            layer.bias = nn.Parameter(state[f"{place}.bias"], requires_grad=False)
    if wrong := _misfit(student.state_dict(), state):
        raise ConfigError(f"{path} does not fit the network of the run: {wrong}")
    for name, value in state.items():
        owner, _, leaf = name.rpartition(".")
        # A range's shape is the calibrator's choice: such buffers are replaced, not copied into.
        if leaf in _RANGE:
            setattr(student.get_submodule(owner), leaf, value)
    student.load_state_dict(state)
    if wrong := _impossible(student):
        raise ConfigError(f"{path} holds {wrong}: it is damaged; quantize again")


def _misfit(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """The first tensor of `state` that is not one of `own`'s; empty where all are."""
    if unknown := sorted(set(state) ^ set(own)):
        return f"{unknown[0]} is in one of the two only"
    for name, value in own.items():
        found, ranges = state[name], name.rpartition(".")[2] in _RANGE
        if found.dtype != value.dtype or not (ranges or found.shape == value.shape):
            return f"{name} has {found.dtype} {tuple(found.shape)}"
    return ""


def _impossible(student: nn.Module) -> str:
    """The first number that no student has; empty where there is none."""
    modules = dict(student.named_modules())
    idle = {name for name, m in modules.items() if isinstance(m, Quantizer) and not m.enabled}
    for name, value in student.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        if owner in idle:
            continue
        if not bool(torch.isfinite(value).all()):
            return f"NaN or infinite values in {name}"
        if leaf == "scale" and not bool((value > 0).all()):
            return f"a scale that is not above 0 in {owner}"
        if leaf == "scale" and value.shape != modules[owner].get_buffer("zero_point").shape:
            return f"scales and zero points of other shapes in {owner}"
    return ""
