"""What an ONNX file takes: normalised images, or the bytes of a camera."""

from __future__ import annotations

import json

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from datafree.config import InputSpec
from datafree.export._traced import INPUT

_INSIDE = "normalised"


def take_bytes(model: onnx.ModelProto, spec: InputSpec) -> None:
    """Let `model` take images as decoders give them: uint8 (B, H, W, C) from 0 to 255.

    The file divides by 255 and normalises in the order of `spec`, so that it computes to the last
    bit what it computes of images normalised outside.

    Args:
        model: with one input of normalised images (B, C, H, W); changed.
        spec: its input.
    """
    graph = model.graph
    for node in graph.node:
        for k, name in enumerate(node.input):
            if name == INPUT:
                node.input[k] = _INSIDE
    (images,) = graph.input
    dims = images.type.tensor_type.shape.dim
    batch, channels, height, width = (d.dim_param or d.dim_value for d in dims)
    shape = (batch, height, width, channels)
    images.CopyFrom(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, shape))
    steps = [
        ("Cast", "floats", None),
        ("Transpose", "channels_first", None),
        ("Div", "scaled", np.float32(255)),
        ("Sub", "centred", _per_channel(spec.mean)),
        ("Div", _INSIDE, _per_channel(spec.std)),
    ]
    nodes: list[onnx.NodeProto] = []
    name = INPUT
    for kind, made, constant in steps:
        given = [name]
        if constant is not None:
            given.append(f"{made}_by")
            graph.initializer.append(numpy_helper.from_array(np.asarray(constant), given[1]))
        node = helper.make_node(kind, given, [made], name=f"input/{made}")
        if kind == "Cast":
            node.attribute.append(helper.make_attribute("to", TensorProto.FLOAT))
        if kind == "Transpose":
            node.attribute.append(helper.make_attribute("perm", [0, 3, 1, 2]))
        nodes.append(node)
        name = made
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
    entry = model.metadata_props.add()
    entry.key, entry.value = "input_layout", "uint8, batch x height x width x channels, 0 to 255"


def as_bytes(images: Tensor, spec: InputSpec) -> Tensor:
    """The uint8 images (B, H, W, C) that are nearest to normalised `images` (B, C, H, W)."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (spec.mean, spec.std))
    pixels = (255 * (images.float() * std + mean)).round().clamp(0, 255)
    return pixels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def from_bytes(pixels: Tensor, spec: InputSpec) -> Tensor:
    """Normalised images (B, C, H, W) of uint8 ones (B, H, W, C)."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (spec.mean, spec.std))
    return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std


def described_input(told: dict[str, str]) -> InputSpec | None:
    """The input that a file's metadata speak of; None where they do not."""
    try:
        shape, mean, std = (json.loads(told[f"input_{n}"]) for n in ("shape", "mean", "std"))
        return InputSpec(shape=shape, mean=mean, std=std, classes=1)
    except (KeyError, ValueError):
        return None


def _per_channel(values: tuple[float, ...]) -> np.ndarray:
    return np.array(values, np.float32).reshape(1, -1, 1, 1)
