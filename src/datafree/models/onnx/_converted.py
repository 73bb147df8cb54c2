"""What the converter made: layers of torch in place of its formulas, names, and where it stands."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import onnx
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.models.onnx._file import Taken, told
from datafree.models.onnx._names import layer_path
from datafree.models.onnx._simple import Simple


class Converted(nn.Module):
    """A converted network that takes images with their channels first and knows where it is.

    Attributes:
        names: what its parameters and buffers are called, by `id`.
    """

    def __init__(self, module: Any, simple: Simple, inputs: Sequence[Taken]) -> None:
        """Wrap the converter's `module`, made from `simple`.

        Args:
            module: a ``ConvertModel``; its layers are replaced where torch has the same.
            simple: what it was made from, in which the converter has merged nodes by now.
            inputs: what the module takes.
        """
        super().__init__()
        _replace(module)
        self.module = module
        self.inputs = tuple(inputs)
        self.current: onnx.NodeProto | None = None
        self.names = _named(module, simple)
        for node in module.onnx_model.graph.node:
            part = getattr(module, module.mapping[node.output[0]])
            if isinstance(part, nn.Module):
                part.register_forward_pre_hook(self._at(node))

    def forward(self, *given: Tensor) -> Any:
        """Outputs of the network for a batch of every input."""
        both = zip(self.inputs, given, strict=True)
        return self.module(*(t.permute(0, 2, 3, 1) if i.channels_last else t for i, t in both))

    def place(self) -> str:
        """The node that was computed last, for messages."""
        return "the beginning" if self.current is None else told(self.current)

    def _at(self, node: onnx.NodeProto) -> Any:
        def hook(part: nn.Module, inputs: Any) -> None:
            del part, inputs
            self.current = node

        return hook


def _named(module: Any, simple: Simple) -> dict[int, str]:
    """Paths of the parameters and buffers of layers, and of the constants that stand alone."""
    names: dict[int, str] = {}
    for tensor in module.onnx_model.graph.initializer:
        buffer = getattr(module, f"_initializer_{tensor.name}", None)
        if isinstance(buffer, Tensor):
            names[id(buffer)] = simple.names.get(tensor.name, "constant")
    for node in module.onnx_model.graph.node:
        part = getattr(module, module.mapping[node.output[0]])
        if isinstance(part, nn.Module):
            path = layer_path(simple.weights.get(node.output[0], []), node.name, node.op_type)
            for name, tensor in (*part.named_parameters(), *part.named_buffers()):
                names[id(tensor)] = f"{path}.{name.rpartition('.')[2]}"
    return names


def _replace(module: Any) -> None:
    """Put layers of torch where the converter writes formulas of its own."""
    operations = importlib.import_module("onnx2pytorch.operations")

    class Norm(operations.LayerNorm):
        def forward(
            self, inputs: Tensor, scale: Tensor | None = None, bias: Tensor | None = None
        ) -> tuple[Tensor | None, ...]:
            size = inputs.shape[self.axis % inputs.ndim :]
            if any(part is not None and part.shape != size for part in (scale, bias)):
                return super().forward(inputs, scale, bias)
            return F.layer_norm(inputs, size, scale, bias, self.eps), None, None

    for node in module.onnx_model.graph.node:
        name = module.mapping[node.output[0]]
        made = getattr(module, name)
        if type(made) is operations.LayerNorm and sum(map(bool, node.output)) == 1:
            made.__class__ = Norm
        elif type(made) is operations.PRelu:
            setattr(module, name, _Slopes())
        elif type(made) is operations.GlobalAveragePool:
            setattr(module, name, _Mean())


class _Slopes(nn.Module):
    """PReLU: one slope, or one for each channel."""

    def forward(self, x: Tensor, slope: Tensor) -> Tensor:
        channels = slope.ndim == x.ndim - 1 and slope.shape[:1] == x.shape[1:2]
        if slope.numel() == 1 or (channels and slope.numel() == len(slope)):
            return F.prelu(x, slope.reshape(-1))
        return x.clamp(min=0) + x.clamp(max=0) * slope


class _Mean(nn.Module):
    """The mean of every channel."""

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, 1) if x.ndim == 4 else x.mean((*range(2, x.ndim),), True)
