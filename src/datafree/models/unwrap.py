"""Networks in memory without what is wrapped around them, and copies of them that always succeed.

Trainings leave networks inside other modules (`DataParallel`, `torch.compile`, averages of weights,
Lightning's Fabric), with a trainer attached, or with a `forward` that another library replaced.
None of that belongs to the network, and some of it can neither be copied nor exported.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from datafree.errors import ModelError

M = TypeVar("M", bound=nn.Module)

_WRAPPERS = (nn.DataParallel, DistributedDataParallel, AveragedModel)
_INNER = ("_orig_mod", "_original_module")
"""What `torch.compile` and Lightning's Fabric call the module that they wrap."""
_TRAINERS = ("_trainer", "_fabric", "trainer")
"""Attributes by which a Lightning module holds those that train it: data, loggers, processes."""
_OWN = ("_parameters", "_buffers", "_modules")


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside wrappers that compute what it computes; the network itself if bare."""
    while (inner := _inside(model)) is not None:
        model = inner
    return model


def lacks_forward(model: nn.Module) -> bool:
    """Whether `model` only holds other modules, or parts of a training, and cannot be called."""
    return type(model).forward is nn.Module.forward and "forward" not in vars(model)


def copied(model: M) -> M:
    """A copy of `model` on the CPU and in eval mode, its inner modules unwrapped too.

    Attributes that cannot be copied (locks, open files, connections) are shared with the original,
    trainers are left behind, and tensors that a forward pass left are copied without their history.

    Args:
        model: not changed.

    Raises:
        ModelError: there are tensors without values, or even so it cannot be copied.
    """
    check_parts(model)
    known = _trainers(model)
    try:
        try:
            made = copy.deepcopy(model, dict(known))
        except Exception:  # noqa: BLE001 - what people hang onto modules may raise anything
            made = copy.deepcopy(model, known | _kept(model, known))
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"{type(model).__name__} cannot be copied ({reason}): build it anew, load its"
            " state_dict() and pass that"
        ) from error
    return settled(unwrap_inside(made))


def settled(model: M) -> M:
    """`model` itself, on the CPU and in eval mode.

    Raises:
        ModelError: there are tensors without values.
    """
    check_parts(model)
    return model.cpu().eval()


def unwrap_inside(model: M) -> M:
    """`model` itself, after every module in it was replaced by what is inside its wrappers."""
    for module in list(model.modules()):
        for name, child in list(_children(module).items()):
            if child is not None and (inner := unwrapped(child)) is not child:
                setattr(module, name, inner)
        _own_forward(module)
    return model


def check_parts(model: nn.Module) -> None:
    """Refuse what keeps a network from being used: tensors without values, TorchScript inside it.

    Raises:
        ModelError: the message names the first parameter, buffer or module.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                f"{type(model).__name__} holds TorchScript, {name or 'all of it'}, which"
                " torch.export does not take: leave out torch.jit.script"
            )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise ModelError(
                f"{type(model).__name__} is not complete: {name} gets its shape from the first"
                " batch, so call the network on one, or load its weights"
            )
        if tensor.is_meta:
            raise ModelError(
                f"{type(model).__name__} holds no weights: {name} is on the device meta; build it"
                " on the CPU and load its weights"
            )
        if tensor.layout != torch.strided:
            raise ModelError(
                f"{type(model).__name__} cannot be quantized: {name} is sparse; pass the network"
                " with .to_dense() in its place"
            )


def _inside(model: nn.Module) -> nn.Module | None:
    """The module that `model` wraps; None where it is no wrapper."""
    children = _children(model)
    if isinstance(model, _WRAPPERS):
        return children["module"]
    for name in _INNER:
        if name in children:
            return children[name]
    # Averages of weights that cannot be called, such as timm's.
    return children["module"] if set(children) == {"module"} and lacks_forward(model) else None


def _children(model: nn.Module) -> dict[str, nn.Module | None]:
    """The modules in `model`, under both names where one has two; none in TorchScript."""
    return {} if isinstance(model, torch.jit.ScriptModule) else vars(model)["_modules"]


def _own_forward(module: nn.Module) -> None:
    """Give `module`, a copy, the `forward` of its class back where Accelerate replaced it.

    What replaced it would call the network that was copied.
    """
    if vars(module).pop("_original_forward", None) is not None:
        vars(module).pop("forward", None)


def _trainers(model: nn.Module) -> dict[int, Any]:
    """A memo for `copy.deepcopy` that leaves the trainers of Lightning modules behind."""
    found: dict[int, Any] = {}
    for module in model.modules():
        if any(base.__name__ == "LightningModule" for base in type(module).__mro__):
            held = (vars(module).get(name) for name in _TRAINERS)
            found |= {id(trainer): None for trainer in held if trainer is not None}
    return found


def _kept(model: nn.Module, known: dict[int, Any]) -> dict[int, Any]:
    """A memo for `copy.deepcopy` with what attributes cannot be copied; tensors without history."""
    modules = {id(module): module for module in model.modules()}
    found: dict[int, Any] = {}
    for module in model.modules():
        for name, value in vars(module).items():
            if name in _OWN or isinstance(value, nn.Module):
                continue
            if isinstance(value, Tensor) and not value.is_leaf:
                found[id(value)] = value.detach().clone()
                continue
            try:
                copy.deepcopy(value, modules | known)
            except Exception:  # noqa: BLE001 - as above
                found[id(value)] = value
    return found
