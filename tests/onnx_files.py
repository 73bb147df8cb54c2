"""Small float networks as ONNX files, written node by node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
Weights = dict[str, NDArray[Any]]


def node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    """A node named after its output, unless `attributes` name it; values are words of a line."""
    given = ["" if name == "-" else name for name in inputs.split()]
    name = attributes.pop("name", output.split()[0])
    return helper.make_node(op, given, output.split(), name, **attributes)


def model(
    nodes: list[onnx.NodeProto],
    weights: Weights,
    *,
    opset: int = 17,
    batch: int | str = "batch",
    shape: tuple[int | str, ...] = (3, 8, 8),
    kind: int = FLOAT,
) -> onnx.ModelProto:
    """A network from ``images`` to ``logits``."""
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("images", kind, (batch, *shape))],
        [helper.make_tensor_value_info("logits", FLOAT, ("batch", "classes"))],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    made.ir_version = 8 if opset < 19 else 10
    return made


def save(path: Path, made: onnx.ModelProto) -> Path:
    onnx.save(made, path)
    return path


def drawn(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Gaussian weights."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def head(source: str, width: int, classes: int = 5) -> tuple[list[onnx.NodeProto], Weights]:
    """Mean over positions of `source`, then a linear layer ``fc``."""
    nodes = [
        node("GlobalAveragePool", source, "pooled"),
        node("Flatten", "pooled", "flat", axis=1),
        node("Gemm", "flat fc.weight fc.bias", "logits", transB=1),
    ]
    return nodes, {"fc.weight": drawn(classes, width, seed=8), "fc.bias": drawn(classes, seed=9)}


def small(**options: Any) -> onnx.ModelProto:
    """Convolution, batch norm, ReLU and a head: all that a network needs."""
    tail, weights = head("act", 6)
    nodes = [
        node("Conv", "images conv.weight", "conv", pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        node("BatchNormalization", "conv bn.weight bn.bias bn.running_mean bn.running_var", "norm"),
        node("Relu", "norm", "act"),
        *tail,
    ]
    norm = {
        "bn.weight": np.abs(drawn(6, seed=1)) + 0.5,
        "bn.bias": drawn(6, seed=2),
        "bn.running_mean": drawn(6, seed=3),
        "bn.running_var": np.abs(drawn(6, seed=4)) + 0.5,
    }
    return model(nodes, weights | {"conv.weight": drawn(6, 3, 3, 3)} | norm, **options)


def tensors(weights: Weights) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in weights.items()}
