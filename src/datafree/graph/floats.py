"""What a network multiplies, layer by layer, and what of it stays in float.

Convolutions and linear layers get quantizers. Transposed convolutions, recurrent layers, products
with bare parameters, normalisations that do not fold and learned factors do not: whoever reports
how small or fast a student is has to count them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload  # pyright: ignore[reportPrivateUsage]

from datafree.graph.sizes import values_read
from datafree.graph.taps import BatchNorm
from datafree.quant.modules import QUANTIZABLE, QUANTIZED
from datafree.tensors import device_of


@dataclass(frozen=True)
class Computation:
    """One layer or step of a network.

    Attributes:
        name: path of the layer, or of the parameter; the node's where there is neither.
        op: class of the layer, or name of the aten operator.
        macs: multiplications with an addition, for one image, of all its calls.
        bytes: of its weights in float32, biases left out; 0 of those a step before has too.
        carries: whether it has weights; a product of two activations has none.
        quantized: whether its weights are on a grid.
    """

    name: str
    op: str
    macs: int
    bytes: int
    carries: bool = True
    quantized: bool = False


def computations(graph_module: fx.GraphModule, shape: Sequence[int]) -> list[Computation]:
    """All that `graph_module` multiplies, in execution order, and all weights that it reads.

    A normalisation or factor is one multiplication for each number that it returns, a constant that
    is added or attached none. Found by running one empty image.

    Args:
        graph_module: the canonical graph, folded or not, or a student; not changed.
        shape: of an image, (C, H, W).
    """
    walk = _Walk(graph_module)
    with torch.no_grad():
        walk.run(torch.zeros(1, *shape, device=device_of(graph_module)))
    return list(walk.found.values())


def float_layers(graph_module: fx.GraphModule, shape: Sequence[int]) -> list[Computation]:
    """Those of `computations` that have weights and no quantizer for them; arguments as there."""
    found = computations(graph_module, shape)
    return [step for step in found if step.carries and not step.quantized]


class _Walk(fx.Interpreter):
    """Runs the graph, and notes what every node multiplies."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.found: dict[str, Computation] = {}
        self.constants: dict[fx.Node, dict[str, Tensor]] = {}
        self.seen: set[int] = set()

    def run_node(self, n: fx.Node) -> Any:
        """Compute the node, and what it takes."""
        value = super().run_node(n)
        if n.op == "get_attr":
            constant = isinstance(value, Tensor) and value.is_floating_point()
            self.constants[n] = {str(n.target): value} if constant else {}
        elif n.op == "call_module":
            self._module(str(n.target), value)
        elif n.op == "call_function":
            self._function(n, value)
        return value

    def _module(self, path: str, output: Any) -> None:
        layer = self.fetch_attr(path)
        if isinstance(layer, QUANTIZABLE):
            weight = layer.weight
            macs = output.numel() * (weight.numel() // len(weight))
            quantized = isinstance(layer, QUANTIZED) and layer.weight_quantizer.enabled
            self._note(path, _class(layer), macs, [weight], quantized=quantized)
        elif isinstance(layer, BatchNorm):
            # As an affine step: the other three vectors are an offset and part of the factor.
            assert layer.running_var is not None  # noqa: S101 - lifting builds no other kind
            self._note(path, _class(layer), output.numel(), [layer.running_var])
        elif isinstance(layer, nn.PReLU):
            self._note(path, _class(layer), output.numel(), [layer.weight])

    def _function(self, node: fx.Node, output: Any) -> None:
        sources = values_read(node)
        read = {k: v for n in sources for k, v in self.constants.get(n, {}).items()}
        if sources and all(source in self.constants for source in sources):
            self.constants[node] = read  # no image is in it
            return
        arguments = _arguments(node, self.env)
        weights = {k: v for k, v in read.items() if _is_weight(v, arguments)}
        macs = _macs(_name(node), arguments, output, bool(weights))
        if weights or macs:
            name = _owner(next(iter(weights))) if weights else node.name
            self._note(name, _name(node), macs, list(weights.values()))

    def _note(
        self, name: str, op: str, macs: int, weights: list[Tensor], *, quantized: bool = False
    ) -> None:
        new = [weight for weight in weights if id(weight) not in self.seen]
        self.seen.update(map(id, new))
        size = 4 * sum(weight.numel() for weight in new)
        before = self.found.get(name)
        if before is None:
            self.found[name] = Computation(name, op, macs, size, bool(weights), quantized)
        elif before.op == op:
            macs, size = before.macs + macs, before.bytes + size
            self.found[name] = replace(before, macs=macs, bytes=size)
        else:
            self.found[f"{name} {op}"] = Computation(name, op, macs, size, bool(weights))


def _arguments(node: fx.Node, values: dict[fx.Node, Any]) -> dict[str, Any]:
    """The arguments of an aten call by name, as values."""
    if not isinstance(node.target, OpOverload):
        return {}
    names = [argument.name for argument in node.target._schema.arguments]  # pyright: ignore
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | node.kwargs
    return fx.map_arg(given, lambda n: values[n])  # pyright: ignore


def _is_weight(value: Tensor, arguments: dict[str, Any]) -> bool:
    """Whether a constant is more than a number, and no bias."""
    biases = [arguments.get("bias")]
    if "mat1" in arguments or "batch1" in arguments:
        biases.append(arguments.get("self"))
    recurrent = "params" in arguments and value.ndim < 2
    return value.numel() > 1 and not recurrent and not any(value is bias for bias in biases)


def _macs(op: str, arguments: dict[str, Any], output: Any, weighted: bool) -> int:
    if op in _PRODUCTS:
        return _PRODUCTS[op](arguments, output)
    return output.numel() if weighted and op in _FACTORS else 0


def _convolved(arguments: dict[str, Any], output: Tensor) -> int:
    weight = arguments["weight"]
    return output.numel() * (weight.numel() // len(weight))


def _transposed(arguments: dict[str, Any], output: Tensor) -> int:
    """Every number of the input meets all weights of its channel, (I, O / groups, taps …)."""
    weight = arguments["weight"]
    return arguments["input"].numel() * (weight.numel() // len(weight))


def _multiplied(*names: str) -> Callable[[dict[str, Any], Tensor], int]:
    """Products over the last dimension of the first of these arguments that there is."""

    def rule(arguments: dict[str, Any], output: Tensor) -> int:
        first = next(arguments[name] for name in names if name in arguments)
        return output.numel() * first.shape[-1]

    return rule


def _contracted(arguments: dict[str, Any], output: Tensor) -> int:
    """``einsum``: a product for each combination of all indices."""
    sizes: dict[str, int] = {}
    terms = arguments["equation"].replace(" ", "").partition("->")[0].split(",")
    for term, tensor in zip(terms, arguments["tensors"], strict=True):
        before, dots, after = term.partition("...")
        hidden = tensor.ndim - len(before) - len(after)
        # Dimensions behind dots are counted from the last, as they broadcast.
        names = [*before, *(f".{at}" for at in range(hidden, 0, -1) if dots), *after]
        for name, size in zip(names, tensor.shape, strict=True):
            sizes[name] = max(sizes.get(name, 1), size)
    return math.prod(sizes.values())


def _attended(arguments: dict[str, Any], output: Tensor) -> int:
    """Queries times keys, and these times values."""
    query, key = arguments["query"], arguments["key"]
    return (
        query.shape[-2]
        * key.shape[-2]
        * (query.shape[-1] + output.shape[-1])
        * (math.prod(output.shape[:-2]))
    )


def _recurrent(arguments: dict[str, Any], output: Any) -> int:
    """Every weight of every layer and direction, once a step."""
    steps = arguments["input"].numel() // arguments["input"].shape[-1]
    return steps * sum(weight.numel() for weight in arguments["params"] if weight.ndim > 1)


_PRODUCTS: dict[str, Callable[[dict[str, Any], Any], int]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "linear"), _convolved),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed),
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot"), _multiplied("self")),
    **dict.fromkeys(("addmm", "baddbmm", "addbmm"), _multiplied("mat1", "batch1")),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
    "einsum": _contracted,
    "scaled_dot_product_attention": _attended,
}
_FACTORS = frozenset(
    ("mul", "div", "batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "prelu")
)


def _owner(path: str) -> str:
    """The layer that a parameter belongs to; itself where it is no layer's weight."""
    layer, _, name = path.rpartition(".")
    return layer if layer and name.startswith("weight") else path


def _class(layer: nn.Module) -> str:
    return type(layer).__name__.removeprefix("Quant")


def _name(node: fx.Node) -> str:
    target = node.target
    if isinstance(target, OpOverload):
        return target.overloadpacket.__name__
    return getattr(target, "__name__", "")
