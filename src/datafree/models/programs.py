"""Programs of `torch.export`, from files and from memory: what they take."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import TensorArgument
from torch.export.passes import move_to_device_pass

from datafree.errors import ModelError
from datafree.models.hubs import Found


def found_program(program: ExportedProgram, name: str, asked: tuple[int, int, int] | None) -> Found:
    """A program and the shape of its images, where that is fixed.

    Args:
        program: not changed; one on another device is copied to the CPU.
        name: of it, for messages.
        asked: the shape a user gave; None takes the program's own.

    Raises:
        ModelError: it takes something else than a batch of any number of images, or other images.
    """
    sizes = _input_sizes(program, name)
    if isinstance(sizes[0], int):
        raise ModelError(
            f"{name} was exported for batches of {sizes[0]} only: export it again with "
            "torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim.AUTO},)) "
            "and at least 2 images"
        )
    fixed = sizes[1:]
    given = asked or fixed
    if any(
        isinstance(size, int) and size != other for size, other in zip(fixed, given, strict=True)
    ):
        raise ModelError(
            f"{name} was exported for images of {dims(fixed)} (channels, height, width), "
            f"not {dims(given)}: leave out input_shape"
        )
    if any(tensor.device.type != "cpu" for tensor in program.state_dict.values()):
        program = move_to_device_pass(copy.deepcopy(program), "cpu")
    return Found(program, _all_fixed(fixed))


def dims(sizes: tuple[int | torch.SymInt, ...]) -> str:
    """Sizes as people write them."""
    return ", ".join(str(size) for size in sizes)


def _all_fixed(sizes: tuple[int | torch.SymInt, ...]) -> tuple[int, int, int] | None:
    channels, height, width = sizes
    if isinstance(channels, int) and isinstance(height, int) and isinstance(width, int):
        return channels, height, width
    return None


def _input_sizes(program: ExportedProgram, name: str) -> tuple[int | torch.SymInt, ...]:
    """Sizes of the one image input, symbolic where they are free."""
    inputs = [
        item for item in program.graph_signature.input_specs if item.kind.name == "USER_INPUT"
    ]
    nodes = {node.name: node for node in program.graph.nodes}
    values = [
        nodes[item.arg.name].meta.get("val")
        for item in inputs
        if isinstance(item.arg, TensorArgument)
    ]
    if (
        len(inputs) != 1
        or len(values) != 1
        or not isinstance(values[0], Tensor)
        or values[0].ndim != 4
    ):
        raise ModelError(f"{name} must take one batch of images (batch, channels, height, width)")
    return tuple(values[0].shape)
