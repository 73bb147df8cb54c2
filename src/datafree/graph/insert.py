"""From a folded float graph to a student: quantized layers and activation quantizers."""

from __future__ import annotations

import copy

from torch import Tensor, fx, nn

from datafree.config import InputSpec, Scheme
from datafree.errors import ConfigError, ModelError
from datafree.graph.chosen import asked_weights, float_layers_of, keep_in_float
from datafree.graph.placement import place_quantizers
from datafree.quant.grid import Grid
from datafree.quant.modules import QUANTIZABLE, QuantizedLayer, Quantizer, quantize_layer
from datafree.quant.ranges import lsq_range, mse_range
from datafree.tensors import shared_copy

_POLICY_BITS = 8


def insert_quantizers(
    folded: fx.GraphModule, scheme: Scheme, spec: InputSpec | None = None, *, share: bool = False
) -> fx.GraphModule:
    """The student: `folded` with weights on their grids and activation quantizers without ranges.

    Args:
        folded: float graph with batch norms folded where exact; not changed.
        scheme: bits, grids, policy and placement.
        spec: its input, by which ranges of that input cover all pixels, whatever images they are
            calibrated on: dreamt ones need not reach white. None leaves them to the images.
        share: weights in memory with `folded`, for a student whose weights nobody writes into.

    Returns:
        A graph module whose `ActivationQuantizer` modules wait for a calibrator.

    Raises:
        ModelError: the graph has no convolution or linear layer.
        ConfigError: ``scheme.layer_bits`` or ``scheme.keep_float`` names a layer the graph does not
            have, both name the same, or a layer that the policy keeps at 8 bits is given others.
    """
    student = shared_copy(folded) if share else copy.deepcopy(folded)
    keep_in_float(student, float_layers(student, scheme))
    _quantize_weights(student, scheme)
    if scheme.activations != 32:
        place_quantizers(student, scheme, spec)
    student.graph.lint()
    student.recompile()
    student.meta["target"] = scheme.target
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
    grid = weight_grid(scheme, bits)
    axis = 0 if scheme.weight_granularity == "channel" else None
    quantizer = Quantizer(grid, axis=axis, ste=scheme.ste).to(weight.device)
    if scheme.weight_range == "mse":
        quantizer.set_range(*mse_range(weight, grid, axis))
    elif scheme.weight_range == "lsq":
        quantizer.set_range(*lsq_range(weight, grid, axis))
    else:
        quantizer.fit(weight)
    return quantizer


def weight_grid(scheme: Scheme, bits: int) -> Grid:
    """The grid `scheme` gives a weight of so many bits."""
    rules = scheme.rules
    symmetric = scheme.symmetric_weights and bits not in rules.affine_weights
    return Grid(
        bits,
        symmetric=symmetric,
        narrow=rules.narrow_weights and symmetric and bits == 8,
        power_of_two=rules.power_of_two,
    )


def weight_bits(graph_module: fx.GraphModule, scheme: Scheme) -> dict[str, int]:
    """Bits of every quantized layer's weight by path, in execution order.

    The policy first, then `layer_bits`; layers that stay in float are left out.

    Raises:
        ModelError: the graph has no convolution or linear layer.
        ConfigError: as `insert_quantizers`.
    """
    names = quantizable_layers(graph_module)
    if not names:
        raise ModelError("the network has no convolution or linear layer that could be quantized")
    kept, fixed = float_layers(graph_module, scheme), policy_layers(graph_module, scheme)
    found: dict[str, int] = {}
    for name in (name for name in names if name not in kept):
        asked = asked_weights(name, scheme)
        if name in fixed and asked not in (None, _POLICY_BITS):
            raise ConfigError(
                f"policy {scheme.policy} keeps {name} at 8 bits and layer_bits asks for {asked}:"
                " leave the layer out or choose policy all"
            )
        found[name] = _POLICY_BITS if name in fixed else asked or scheme.weights
    return found


def float_layers(graph_module: fx.GraphModule, scheme: Scheme) -> frozenset[str]:
    """Paths of the convolution and linear layers that `scheme` keeps in float.

    Raises:
        ConfigError: as `insert_quantizers`.
    """
    return float_layers_of(quantizable_layers(graph_module), scheme)


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
