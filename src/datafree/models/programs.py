"""Programs of `torch.export`, from files and from memory: what they take."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import TensorArgument
from torch.export.passes import move_to_device_pass

from datafree.config.inputs import Shape, shapes_of
from datafree.errors import ModelError
from datafree.models.hubs import Found

Asked = Shape | tuple[Shape, ...] | None
"""A shape of one item, of several inputs one each; None where nothing was said."""


def found_program(program: ExportedProgram, name: str, asked: Asked) -> Found:
    """A program and the shapes of its inputs, where they are fixed.

    Args:
        program: not changed; one on another device is copied to the CPU.
        name: of it, for messages.
        asked: the shape a user gave, of several inputs one each; None takes the program's own.

    Raises:
        ModelError: it takes something else than batches of any number of items, or other items.
    """
    inputs = _inputs(program, name)
    given = shapes_of(asked)
    if given is not None and len(given) != len(inputs):
        raise ModelError(
            f"{name} takes {len(inputs)} input{'s' * (len(inputs) != 1)} ({', '.join(inputs)}), and"
            f" input_shape names {len(given)}: leave it out"
        )
    for key, shape in zip(inputs, given or (None,) * len(inputs), strict=True):
        sizes = inputs[key]
        if isinstance(sizes[0], int):
            raise ModelError(
                f"{name} was exported for batches of {sizes[0]} only: export it again with "
                "torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim.AUTO},)"
                ") and at least 2 images"
            )
        fixed = sizes[1:]
        other = shape is not None and (
            len(shape) != len(fixed)
            or any(isinstance(s, int) and s != o for s, o in zip(fixed, shape, strict=True))
        )
        if shape is not None and other:
            what = "images" if len(fixed) == 3 else key
            raise ModelError(
                f"{name} was exported for {what} of {_told(fixed)}, not {dims(shape)}: leave out"
                " input_shape"
            )
    if any(tensor.device.type != "cpu" for tensor in program.state_dict.values()):
        program = move_to_device_pass(copy.deepcopy(program), "cpu")
    known = [_all_fixed(sizes[1:]) for sizes in inputs.values()]
    fixed_shapes = tuple(shape for shape in known if shape is not None)
    return Found(program, fixed_shapes if len(fixed_shapes) == len(known) else None)


def dims(sizes: tuple[int | torch.SymInt, ...]) -> str:
    """Sizes as people write them."""
    return ", ".join(str(size) for size in sizes)


def _told(sizes: tuple[int | torch.SymInt, ...]) -> str:
    image = " (channels, height, width)" if len(sizes) == 3 else ""
    return f"{dims(sizes)}{image}"


def _all_fixed(sizes: tuple[int | torch.SymInt, ...]) -> tuple[int, ...] | None:
    fixed = tuple(size for size in sizes if isinstance(size, int))
    return fixed if len(fixed) == len(sizes) else None


def _inputs(program: ExportedProgram, name: str) -> dict[str, tuple[int | torch.SymInt, ...]]:
    """Sizes of every input by its name, symbolic where they are free."""
    specs = [item for item in program.graph_signature.input_specs if item.kind.name == "USER_INPUT"]
    nodes = {node.name: node for node in program.graph.nodes}
    found: dict[str, tuple[int | torch.SymInt, ...]] = {}
    for item in specs:
        value = (
            nodes[item.arg.name].meta.get("val") if isinstance(item.arg, TensorArgument) else None
        )
        if not isinstance(value, Tensor) or not value.ndim:
            raise ModelError(
                f"{name} must take batches of tensors, and its input {item.arg.name} is none:"
                " export it with that filled in"
            )
        if not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            raise ModelError(
                f"{name} takes {kind} numbers as {item.arg.name}: images and values are float;"
                " export the network behind that input, or with it filled in"
            )
        found[item.arg.name] = tuple(value.shape)
    if not found:
        raise ModelError(f"{name} must take one batch of images (batch, channels, height, width)")
    return found
