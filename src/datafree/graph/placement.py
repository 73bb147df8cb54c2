"""Where activation quantizers stand, and on which grids.

`every_edge`: on every tensor that the target computes with in integers, see
`datafree.graph.edges`. `every_input`: one quantizer on every tensor that enters a convolution or
linear layer, shared by its readers; the network's own input has 8 bits. `after_activation`: one
quantizer after every activation function (after the batch norm that directly follows it, where one
could not be folded), the network's input stays float. With the last two, adds, concatenations,
pooling and gates compute in float on quantized inputs.

Layers that stay in float read float values, but where a kernel before them is integer: there its
result has 8 bits.
"""

from __future__ import annotations

import math

import torch
from torch import fx, nn
from torch._ops import OpOverload  # pyright: ignore[reportPrivateUsage]

from datafree.config import InputSpec, Scheme
from datafree.graph.chosen import asked_input, is_kept
from datafree.graph.edges import (
    Edge,
    integer_edges,
    is_result,
    module_of,
    moves,
    operator_of,
    origin,
)
from datafree.graph.image import Bounds, image_bounds
from datafree.graph.sizes import is_size, values_read
from datafree.graph.taps import BatchNorm
from datafree.quant.grid import Grid
from datafree.quant.modules import QUANTIZABLE, ActivationQuantizer, ChannelCopies
from datafree.tensors import device_of

ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.ELU, nn.PReLU, nn.SiLU, nn.GELU, nn.Mish,
    nn.Hardswish,
)  # fmt: skip
_NEVER_NEGATIVE = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid)
_FIXED: dict[type[nn.Module], str] = {
    nn.Sigmoid: "sigmoid", nn.Softmax: "softmax", nn.Tanh: "tanh", nn.LogSoftmax: "log_softmax",
}  # fmt: skip
# Measured on ResNet-20: images of `zeroq` give logits up to 2.3, real ones up to 10.
_RESULTS_WIDENED = 4.0
_NEARLY_FLOAT = 8  # bits of what an integer kernel hands to a layer in float
_ONLY_MOVES = frozenset(
    ("pad", "flatten", "view", "reshape", "permute", "transpose", "slice", "contiguous")
)
_POOLS = frozenset(("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "mean"))
_POOLS_OR_MOVES = _ONLY_MOVES | _POOLS
_KEEPS_SIGN = _POOLS_OR_MOVES - {"contiguous"} | {"cat", "add"}


def place_quantizers(student: fx.GraphModule, scheme: Scheme, spec: InputSpec | None) -> None:
    """Put activation quantizers without ranges into `student`, in place.

    Args:
        student: float graph, batch norms folded where exact.
        scheme: where they stand, and their grids.
        spec: its input, by which ranges of images cover all pixels; None leaves them to the images
            that it is calibrated on.
    """
    if scheme.placement == "every_edge" and "silu" in scheme.rules.operators:
        _split_silu(student)
    inputs_of_ends = _inputs_of_ends(student, scheme) if scheme.float_input else set[fx.Node]()
    edges, images = _edges(student, scheme), image_bounds(student, spec)
    shared = _shared(student, scheme, edges)
    ends = {edge.node for edge in edges}
    asked = {edge.node: _asked(student, edge, ends, scheme) for edge in edges}
    for edge in edges:
        node = edge.node
        own_input = node in images
        if scheme.float_input and own_input and scheme.placement != "every_edge":
            continue
        eight = own_input or edge.wide or node in inputs_of_ends
        bits = 8 if eight else max(asked[n] for n in _sharing(node, shared) if n in asked)
        name = f"{shared.get(node, node).name}_quantizer"
        if not hasattr(student, name):
            signed = any(not never_negative(student, n) for n in _sharing(node, shared))
            quantizer = ActivationQuantizer(
                activation_grid(scheme, bits, signed=signed),
                ste=scheme.ste,
                covers=_extremes(images[node]) if own_input and spec is not None else None,
                widened=_RESULTS_WIDENED if is_result(student, node) else 1.0,
                fixed=_fixed(student, node, scheme),
            )
            student.add_submodule(name, quantizer.to(device_of(student)))
        with student.graph.inserting_after(node):
            quantized = student.graph.call_module(name, (node,))
        for reader in edge.readers:
            reader.replace_input_with(node, quantized)


def _extremes(bounds: Bounds) -> tuple[float, float] | None:
    """What black and white become where channels go furthest; None of what is no image."""
    low, high = float(bounds[0].min()), float(bounds[1].max())
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def activation_grid(scheme: Scheme, bits: int, *, signed: bool) -> Grid:
    """The grid `scheme` gives an activation of so many bits that may be negative, or never is."""
    rules = scheme.rules
    return Grid(
        bits,
        symmetric=scheme.symmetric_activations,
        signed=signed or rules.signed_activations,
        even=rules.even_zero_points and not scheme.symmetric_activations,
        power_of_two=rules.power_of_two,
    )


def _fixed(student: fx.GraphModule, node: fx.Node, scheme: Scheme) -> tuple[float, int] | None:
    """Scale and zero point of codes from 0 that the target knows for an operator alone."""
    module = module_of(student, node)
    return next(
        (scheme.rules.fixed[name] for kind, name in _FIXED.items()
         if isinstance(module, kind) and name in scheme.rules.fixed), None,
    )  # fmt: skip


def never_negative(student: fx.GraphModule, node: fx.Node) -> bool:
    """Whether `node` is never negative by its position in the graph, whatever the data."""
    module = module_of(student, node)
    if module is not None:
        if isinstance(module, nn.Hardtanh) and module.min_val >= 0:
            return True
        if isinstance(module, ActivationQuantizer | ChannelCopies):
            return never_negative(student, node.all_input_nodes[0])
        return isinstance(module, _NEVER_NEGATIVE)
    name = _name(node)
    if name in ("add", "pad"):
        numbers = (*node.args[1:], *node.kwargs.values())
        if any(isinstance(number, int | float) and number < 0 for number in numbers):
            return False
    # Further nodes in the arguments of a view are sizes.
    sources = node.all_input_nodes if name in ("add", "cat") else node.all_input_nodes[:1]
    return name in _KEEPS_SIGN and all(never_negative(student, source) for source in sources)


def _edges(student: fx.GraphModule, scheme: Scheme) -> list[Edge]:
    if scheme.placement == "every_edge":
        return integer_edges(student, scheme.rules)
    inputs = scheme.placement == "every_input"
    wanted = _layer_inputs(student) if inputs else _activation_outputs(student)
    return [Edge(node, tuple(readers), wide=False) for node, readers in wanted.items()]


def _shared(student: fx.GraphModule, scheme: Scheme, edges: list[Edge]) -> dict[fx.Node, fx.Node]:
    """The tensor whose quantizer a tensor shares: around operators that want one grid."""
    first: dict[fx.Node, fx.Node] = {}

    def root(node: fx.Node) -> fx.Node:
        while first.get(node, node) is not node:
            node = first[node]
        return node

    quantized = {edge.node for edge in edges}
    for node in student.graph.nodes:
        if operator_of(student, node) not in scheme.rules.same_grid:
            continue
        around = [origin(student, source) for source in values_read(node)]
        for other in (*around, node):
            if other in quantized and around[0] in quantized:
                first[root(other)] = root(around[0])
    return {node: root(node) for node in first}


def _asked(student: fx.GraphModule, edge: Edge, ends: set[fx.Node], scheme: Scheme) -> int:
    """The most bits that a layer asks for of the tensor it reads, through whatever is between."""
    found: list[int] = []
    seen = {edge.node}
    waiting = list(edge.readers)
    while waiting:
        node = waiting.pop()
        if node in seen or is_size(node):
            continue
        seen.add(node)
        if is_kept(student, node):
            found.append(_NEARLY_FLOAT)
        elif isinstance(module_of(student, node), QUANTIZABLE):
            found.append(asked_input(str(node.target), scheme))
        elif node not in ends:
            waiting.extend(node.users)
    return max(found, default=scheme.activations)


def _sharing(node: fx.Node, shared: dict[fx.Node, fx.Node]) -> list[fx.Node]:
    """All tensors that have the quantizer of `node`."""
    chosen = shared.get(node, node)
    return [node, chosen, *(other for other, first in shared.items() if first is chosen)]


def _split_silu(student: fx.GraphModule) -> None:
    """Write ``silu(x)`` as ``x sigmoid(x)``: runtimes have integer kernels for these two."""
    calls = [n for n in student.graph.nodes if isinstance(module_of(student, n), nn.SiLU)]
    for path in {str(node.target) for node in calls}:
        student.set_submodule(path, nn.Sigmoid())
    for node in calls:
        (source,), name = node.args, node.name
        node.name = f"{name}_sigmoid"
        with student.graph.inserting_after(node):
            product = student.graph.call_function(torch.ops.aten.mul.Tensor, (source, node))
        for reader in [user for user in node.users if user is not product]:
            reader.replace_input_with(node, product)
        # Blocks are looked up by the names of the float graph.
        product.name = name


def _inputs_of_ends(student: fx.GraphModule, scheme: Scheme) -> set[fx.Node]:
    """What enters layers that the policy gives 8 bits, back to before pooling and reshaping."""
    layers = [n for n in student.graph.nodes if isinstance(module_of(student, n), QUANTIZABLE)]
    second = layers[1:2] if scheme.policy == "brecq" else []
    found: set[fx.Node] = set()
    for layer in (*second, *layers[-1:]):
        node = layer.all_input_nodes[0]
        found.add(node)
        while _name(node) in _POOLS_OR_MOVES or isinstance(module_of(student, node), ChannelCopies):
            node = node.all_input_nodes[0]
            found.add(node)
    return found


def _layer_inputs(student: fx.GraphModule) -> dict[fx.Node, list[fx.Node]]:
    wanted: dict[fx.Node, list[fx.Node]] = {}
    for node in student.graph.nodes:
        layer = isinstance(module_of(student, node), QUANTIZABLE)
        if layer and not is_kept(student, node):
            wanted.setdefault(node.args[0], []).append(node)
    return wanted


def _activation_outputs(student: fx.GraphModule) -> dict[fx.Node, list[fx.Node]]:
    wanted: dict[fx.Node, list[fx.Node]] = {}
    for node in student.graph.nodes:
        if not isinstance(module_of(student, node), ACTIVATIONS):
            continue
        readers = list(node.users)
        source = node
        if len(readers) == 1 and isinstance(module_of(student, readers[0]), BatchNorm):
            source = readers[0]
        wanted[source] = [user for user in source.users if not _only_kept(student, user)]
    return {node: readers for node, readers in wanted.items() if readers}


def _only_kept(student: fx.GraphModule, node: fx.Node) -> bool:
    """Whether nobody but layers that stay in float computes with the values of `node`."""
    if is_kept(student, node):
        return True
    moved = moves(student, node) or _name(node) in _POOLS_OR_MOVES
    return moved and bool(node.users) and all(_only_kept(student, user) for user in node.users)


def _name(node: fx.Node) -> str:
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return ""
    return node.target.overloadpacket.__name__
