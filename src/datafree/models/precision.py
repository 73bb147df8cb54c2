"""Networks in half, bfloat16 or double precision as float32 copies, in which all stages compute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.fx.node import map_aggregate

from datafree.config.inputs import Shape
from datafree.errors import ModelError
from datafree.models.unwrap import copied

_BATCH = 2
_KEPT = ("nn_module_stack", "stack_trace")
"""What a node still knows once its precision has changed: whose call it is, not what it returns."""


def in_float32(
    model: nn.Module | ExportedProgram, shapes: Sequence[Shape], name: str
) -> tuple[nn.Module | ExportedProgram, str | None]:
    """`model` itself where all its numbers are float32, or else a copy of which that is true.

    A module that casts to another precision inside `forward` becomes the module of its exported
    program, in which casts can be changed.

    Args:
        model: in eval mode; not changed.
        shapes: of one item, of every input.
        name: of the network, for messages.

    Returns:
        The network, and a line that says what became of it; None where nothing did.

    Raises:
        ModelError: a parameter is complex, integer or quantized already; the message names
            the first.
    """
    parameters = dict(model.named_parameters())
    for key, parameter in parameters.items():
        _refuse(key, parameter, name)
    kinds = Counter(t.dtype for t in _numbers(model) if t.is_floating_point())
    if set(kinds) <= {torch.float32}:
        return model, None
    if isinstance(model, ExportedProgram):
        made = _rewritten(model)
    else:
        made = copied(model).float()
        if not _runs(made, shapes):
            made = _cast_by_hand(model, shapes, kinds.most_common(1)[0][0]) or made
    return made, f"{name} holds {_counts(kinds)} numbers: it is quantized as a float32 copy"


def _runs(model: nn.Module, shapes: Sequence[Shape]) -> bool:
    try:
        with torch.no_grad():
            model(*(torch.zeros(_BATCH, *shape) for shape in shapes))
    except Exception:  # noqa: BLE001 - a stranger's network may raise anything
        return False
    return True


def _cast_by_hand(model: nn.Module, shapes: Sequence[Shape], own: torch.dtype) -> nn.Module | None:
    """The module of the program of `model`, if it runs on inputs of its `own` precision."""
    given = tuple(torch.zeros(_BATCH, *shape, dtype=own) for shape in shapes)
    sizes = ({0: Dim("batch", min=1)},) * len(given)
    try:
        with torch.no_grad():
            program = torch.export.export(model, given, dynamic_shapes=sizes, strict=False)
    except Exception:  # noqa: BLE001 - as above
        return None
    made = _rewritten(program)
    return made if _runs(made, shapes) else None


def _refuse(key: str, tensor: Tensor, name: str) -> None:
    if tensor.is_quantized or not tensor.is_floating_point():
        number = _short(tensor.dtype)
        why = "split it into two real ones" if tensor.is_complex() else (
            "a buffer may hold integers; weights that are quantized already cannot be again: load"
            " the float ones"
        )  # fmt: skip
        raise ModelError(f"{name} cannot be quantized: its parameter {key} is {number}: {why}")


def _numbers(model: nn.Module | ExportedProgram) -> list[Tensor]:
    """Parameters and buffers; of a program its constants too, such as tensors without a name."""
    if isinstance(model, ExportedProgram):
        constants = (value for value in model.constants.values() if isinstance(value, Tensor))
        return [*model.state_dict.values(), *constants]
    return [*model.parameters(), *model.buffers()]


def _rewritten(program: ExportedProgram) -> nn.Module:
    """The module of a program, with float32 in place of every other precision its calls name."""
    exported = program.module(check_guards=False)
    # A new graph module, since that of a program refuses eval(); its parameters are still shared.
    made = fx.GraphModule(exported, exported.graph)
    for node in list(made.graph.nodes):
        if "assert_tensor_metadata" in str(node.target):
            made.graph.erase_node(node)
            continue
        node.args = map_aggregate(node.args, _single)  # pyright: ignore[reportAttributeAccessIssue]
        node.kwargs = map_aggregate(node.kwargs, _single)  # pyright: ignore[reportAttributeAccessIssue]
        node.meta = {key: value for key, value in node.meta.items() if key in _KEPT}
    made.recompile()
    return copied(made).float()


def _single(value: Any) -> Any:
    wide = isinstance(value, torch.dtype) and value.is_floating_point
    return torch.float32 if wide else value


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _counts(kinds: Counter[torch.dtype]) -> str:
    names = [(_short(kind), count) for kind, count in kinds.most_common()]
    if len(names) == 1:
        return names[0][0]
    return " and ".join(f"{name} ({count} tensor{'s' * (count > 1)})" for name, count in names)
