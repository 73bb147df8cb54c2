"""From a folded float graph to a student: quantized layers and activation quantizers.

Placement rules. `every_input`: one quantizer on every tensor that enters a convolution or linear
layer, shared by its readers; the network's own input has 8 bits. `after_activation`: one quantizer
after every activation function (after the batch norm that directly follows it, where one could not
be folded), the network's input stays float. Adds, concatenations, pooling and gates compute in
float on quantized inputs.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload  # pyright: ignore[reportPrivateUsage]

from datafree.config import InputSpec, Scheme
from datafree.errors import ConfigError, ModelError, UnknownNameError
from datafree.graph.moments import pixels
from datafree.graph.taps import BatchNorm
from datafree.quant.grid import Grid
from datafree.quant.modules import (
    QUANTIZABLE,
    ActivationQuantizer,
    ChannelCopies,
    QuantizedLayer,
    Quantizer,
    quantize_layer,
)
from datafree.quant.ranges import mse_range
from datafree.tensors import device_of

ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.ELU, nn.PReLU, nn.SiLU, nn.GELU, nn.Mish,
    nn.Hardswish,
)  # fmt: skip
_NEVER_NEGATIVE = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid)
_KEEPS_SIGN = frozenset(
    (
        "max_pool2d",
        "avg_pool2d",
        "adaptive_avg_pool2d",
        "mean",
        "flatten",
        "view",
        "reshape",
        "permute",
        "transpose",
        "slice",
        "pad",
        "cat",
        "add",
    )
)
_ONLY_MOVES = frozenset(
    ("pad", "flatten", "view", "reshape", "permute", "transpose", "slice", "contiguous")
)

_POOLS_OR_MOVES = _ONLY_MOVES | {"max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "mean"}


def insert_quantizers(
    folded: fx.GraphModule, scheme: Scheme, spec: InputSpec | None = None
) -> fx.GraphModule:
    """The student: `folded` with weights on their grids and activation quantizers without ranges.

    Args:
        folded: float graph with batch norms folded where exact; not changed.
        scheme: bits, grids, policy and placement.
        spec: its input, by which ranges of that input cover all pixels, whatever images they are
            calibrated on: dreamt ones need not reach white. None leaves them to the images.

    Returns:
        A graph module whose `ActivationQuantizer` modules wait for a calibrator.

    Raises:
        ModelError: the graph has no convolution or linear layer.
        ConfigError: ``scheme.layer_bits`` names a layer the graph does not have, or gives one that
            the policy keeps at 8 bits others.
    """
    student = copy.deepcopy(folded)
    _quantize_weights(student, scheme)
    if scheme.activations != 32:
        _place_quantizers(student, scheme, None if spec is None else _extremes(spec))
    student.graph.lint()
    student.recompile()
    return student.eval()


def first_calls(graph_module: fx.GraphModule) -> dict[str, fx.Node]:
    """The first call of every convolution and linear layer by path, in execution order."""
    calls: dict[str, fx.Node] = {}
    for node in graph_module.graph.nodes:
        if node.op == "call_module" and isinstance(
            graph_module.get_submodule(str(node.target)), QUANTIZABLE
        ):
            calls.setdefault(str(node.target), node)
    return calls


def quantizable_layers(graph_module: fx.GraphModule) -> list[str]:
    """Paths of convolution and linear layers in execution order, each once."""
    return list(first_calls(graph_module))


def weight_quantizer(weight: Tensor, bits: int, scheme: Scheme) -> Quantizer:
    """The quantizer `scheme` gives a weight (O, …) at so many bits, its range fitted to it."""
    grid = Grid(bits, symmetric=scheme.symmetric_weights)
    axis = 0 if scheme.weight_granularity == "channel" else None
    quantizer = Quantizer(grid, axis=axis, ste=scheme.ste).to(weight.device)
    if scheme.weight_range == "mse":
        quantizer.set_range(*mse_range(weight, grid, axis))
    else:
        quantizer.fit(weight)
    return quantizer


def weight_bits(graph_module: fx.GraphModule, scheme: Scheme) -> dict[str, int]:
    """Bits of every layer's weight by path, in execution order: policy first, then `layer_bits`.

    Raises:
        ModelError: the graph has no convolution or linear layer.
        ConfigError: as `insert_quantizers`.
    """
    names = quantizable_layers(graph_module)
    if not names:
        raise ModelError("the network has no convolution or linear layer that could be quantized")
    fixed = policy_layers(graph_module, scheme)
    for name, bits in scheme.layer_bits.items():
        if name not in names:
            raise UnknownNameError("layer in layer_bits", name, names)
        if name in fixed and bits != 8:
            raise ConfigError(
                f"policy {scheme.policy} keeps {name} at 8 bits and layer_bits asks for {bits}:"
                " leave the layer out or choose policy all"
            )
    return {
        name: 8 if name in fixed else scheme.layer_bits.get(name, scheme.weights) for name in names
    }


def policy_layers(graph_module: fx.GraphModule, scheme: Scheme) -> frozenset[str]:
    """Paths of the layers whose weights `scheme.policy` keeps at 8 bits: none, or both ends."""
    names = quantizable_layers(graph_module)
    return frozenset() if scheme.policy == "all" else frozenset((*names[:1], *names[-1:]))


def quantized_layer(layer: nn.Module, scheme: Scheme, bits: int) -> QuantizedLayer:
    """A convolution or linear layer with its weight on the grid of `scheme` with `bits` bits.

    Args:
        layer: one of `QUANTIZABLE`; not changed, its parameters are shared.
        scheme: granularity, symmetry and range of the grid.
        bits: of the weight.
    """
    assert isinstance(layer, QUANTIZABLE)  # noqa: S101 - only these are listed
    return quantize_layer(layer, weight_quantizer(layer.weight.detach(), bits, scheme))


def _quantize_weights(student: fx.GraphModule, scheme: Scheme) -> None:
    for name, bits in weight_bits(student, scheme).items():
        layer = student.get_submodule(name)
        student.set_submodule(name, quantized_layer(layer, scheme, bits))


def _place_quantizers(
    student: fx.GraphModule, scheme: Scheme, extremes: tuple[float, float] | None
) -> None:
    wanted = (
        _layer_inputs(student)
        if scheme.placement == "every_input"
        else _activation_outputs(student)
    )
    inputs_of_ends = _inputs_of_ends(student) if scheme.policy == "brecq" else set[fx.Node]()
    for node, readers in wanted.items():
        if scheme.policy == "brecq" and is_network_input(node):
            continue
        eight = is_network_input(node) or node in inputs_of_ends
        bits = 8 if eight else scheme.activations
        signed = not _never_negative(student, node)
        grid = Grid(bits, symmetric=scheme.symmetric_activations, signed=signed)
        name = f"{node.name}_quantizer"
        covers = extremes if is_network_input(node) else None
        quantizer = ActivationQuantizer(grid, ste=scheme.ste, covers=covers)
        quantizer.to(device_of(student))
        student.add_submodule(name, quantizer)
        with student.graph.inserting_after(node):
            quantized = student.graph.call_module(name, (node,))
        for reader in readers:
            reader.replace_input_with(node, quantized)


def _extremes(spec: InputSpec) -> tuple[float, float]:
    """What black and white become where channels go furthest."""
    known = pixels(spec, torch.device("cpu"))
    return float(known.low.min()), float(known.high.max())


def _inputs_of_ends(student: fx.GraphModule) -> set[fx.Node]:
    """What enters the second and the last layer, back to before pooling and reshaping."""
    layers = [
        node
        for node in student.graph.nodes
        if node.op == "call_module"
        and isinstance(student.get_submodule(str(node.target)), QUANTIZABLE)
    ]
    found: set[fx.Node] = set()
    for layer in (*layers[1:2], *layers[-1:]):
        node = layer.all_input_nodes[0]
        found.add(node)
        while _name(node) in _POOLS_OR_MOVES or _copies_channels(student, node):
            node = node.all_input_nodes[0]
            found.add(node)
    return found


def _layer_inputs(student: fx.GraphModule) -> dict[fx.Node, list[fx.Node]]:
    wanted: dict[fx.Node, list[fx.Node]] = {}
    for node in student.graph.nodes:
        if node.op == "call_module" and isinstance(
            student.get_submodule(str(node.target)), QUANTIZABLE
        ):
            wanted.setdefault(node.args[0], []).append(node)
    return wanted


def _activation_outputs(student: fx.GraphModule) -> dict[fx.Node, list[fx.Node]]:
    wanted: dict[fx.Node, list[fx.Node]] = {}
    for node in student.graph.nodes:
        if node.op != "call_module" or not isinstance(
            student.get_submodule(str(node.target)), ACTIVATIONS
        ):
            continue
        readers = list(node.users)
        source = node
        if len(readers) == 1 and _is_batch_norm(student, readers[0]):
            source = readers[0]
        wanted[source] = list(source.users)
    return wanted


def is_network_input(node: fx.Node) -> bool:
    """Whether `node` is the network's input, zero-padded or reshaped at most."""
    while node.op == "call_function" and _name(node) in _ONLY_MOVES:
        node = node.all_input_nodes[0]
    return node.op == "placeholder"


def _name(node: fx.Node) -> str:
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return ""
    return node.target.overloadpacket.__name__


def _copies_channels(student: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(
        student.get_submodule(str(node.target)), ChannelCopies
    )


def _is_batch_norm(student: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(
        student.get_submodule(str(node.target)), BatchNorm
    )


def _never_negative(student: fx.GraphModule, node: fx.Node) -> bool:
    """Whether `node` is never negative by its position in the graph, whatever the data."""
    if node.op == "call_module":
        module = student.get_submodule(str(node.target))
        if isinstance(module, nn.Hardtanh) and module.min_val >= 0:
            return True
        if isinstance(module, ActivationQuantizer | ChannelCopies):
            return _never_negative(student, node.all_input_nodes[0])
        return isinstance(module, _NEVER_NEGATIVE)
    name = _name(node)
    if name in ("add", "pad"):
        numbers = (*node.args[1:], *node.kwargs.values())
        if any(isinstance(number, int | float) and number < 0 for number in numbers):
            return False
    # Further nodes in the arguments of a view are sizes.
    sources = node.all_input_nodes if name in ("add", "cat") else node.all_input_nodes[:1]
    return name in _KEEPS_SIGN and all(_never_negative(student, source) for source in sources)
