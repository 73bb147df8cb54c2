"""What layers cost at so many bits, and what there is to spend."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Literal

import torch
from torch import Tensor, fx

from datafree.allocation.frontier import Option
from datafree.config import BudgetOptions, Scheme
from datafree.config.widths import FLOAT
from datafree.errors import ConfigError
from datafree.graph.chosen import asked_weights
from datafree.graph.insert import (
    insert_quantizers,
    policy_layers,
    quantizable_layers,
    weight_bits,
)
from datafree.graph.taps import tap_outputs
from datafree.graph.widths import activation_widths
from datafree.quant.modules import QUANTIZABLE
from datafree.tensors import device_of

Unit = Literal["bits", "BOPs"]
_PREFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_PATTERN = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]?)(b|bops)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Layer:
    """What the cost of a layer is made of.

    Attributes:
        path: of the layer.
        elements: numbers in its weight.
        macs: multiply-accumulate operations of all its calls on one image.
        activation_bits: of its input; the widest of several; 32 where it is float.
        free: whether its bits can be chosen.
        bits: of its weight where they cannot: the policy's 8, those it was given, 32 in float.
    """

    path: str
    elements: int
    macs: int
    activation_bits: int
    free: bool
    bits: int = 8

    def cost(self, bits: int, unit: Unit) -> int:
        """Bits of its weight, or bit operations: ``macs * bits * activation_bits``."""
        if unit == "bits":
            return self.elements * bits
        return self.macs * bits * self.activation_bits

    def choices(self, bits: Sequence[int]) -> tuple[int, ...]:
        """The numbers of bits it can have, of those wanted."""
        return tuple(bits) if self.free else (self.bits,)


@dataclass(frozen=True)
class Budget:
    """What all layers together may cost.

    Attributes:
        unit: of the limit: bits of weights, or bit operations of one image.
        limit: layers whose bits are fixed are paid from it too.
        text: as the user gave it.
    """

    unit: Unit
    limit: int
    text: str


def describe_layers(
    folded: fx.GraphModule, scheme: Scheme, shape: tuple[int, int, int]
) -> list[Layer]:
    """The convolution and linear layers of `folded` in execution order.

    Args:
        folded: the float graph the student will be made from; not changed.
        scheme: its policy, placement and bits of activations count, and what it says of layers.
        shape: channels, height, width of one image.
    """
    # The cheapest student there is: only its activation quantizers are looked at.
    plain = scheme.model_copy(update={"weight_range": "minmax"})
    widths = activation_widths(insert_quantizers(folded, plain))
    given, ends = weight_bits(folded, scheme), policy_layers(folded, scheme)
    positions = _positions(folded, shape)
    layers: list[Layer] = []
    for path in quantizable_layers(folded):
        layer = folded.get_submodule(path)
        assert isinstance(layer, QUANTIZABLE)  # noqa: S101 - only these are listed
        elements = layer.weight.numel()
        macs = elements * positions[path]
        inputs = max(widths.get(path, ()), default=FLOAT)
        free = path in given and path not in ends and asked_weights(path, scheme) is None
        layers.append(Layer(path, elements, macs, inputs, free, given.get(path, FLOAT)))
    return layers


def resolve_budget(wanted: BudgetOptions, layers: Sequence[Layer]) -> Budget:
    """The budget of `wanted` in bits or bit operations.

    An average counts the layers that are free, so that a network of any policy is as large as the
    uniform one of the same policy.

    Raises:
        ConfigError: the budget is not understood, even the fewest bits everywhere exceed it, or
            there is no layer whose bits could be chosen.
    """
    if not any(layer.free for layer in layers):
        name = "budget" if wanted.average_bits is None else "average_bits"
        raise ConfigError(
            f"policy, layer_bits and keep_float settle the bits of all {len(layers)} layers, so"
            f" that {name} has none to choose: leave {name} out, or settle fewer"
        )
    bits = wanted.candidate_bits
    if wanted.average_bits is not None:
        free = sum(layer.elements for layer in layers if layer.free)
        fixed = sum(layer.cost(layer.bits, "bits") for layer in layers if not layer.free)
        spend = int(Decimal(str(wanted.average_bits)) * free)
        budget = Budget("bits", fixed + spend, f"{wanted.average_bits:g} bits on average")
        least = f"{bits[0]} bits"
    else:
        budget = parse_budget(wanted.budget or "")
        least = show_cost(_least(layers, bits, budget.unit), budget.unit)
    if _least(layers, bits, budget.unit) > budget.limit:
        fewest = f"with {bits[0]} bits in every layer"
        if not all(layer.free for layer in layers):
            fewest += " but those whose bits are settled"
        raise ConfigError(f"{budget.text} cannot be kept to: the least is {least}, {fewest}")
    return budget


def parse_budget(text: str) -> Budget:
    """A size such as ``0.5MB`` or ``300kB``, or bit operations such as ``2.5GBOPs``.

    Prefixes are decimal (1 kB is 1000 bytes); upper and lower case are the same.

    Raises:
        ConfigError: `text` is neither, or zero.
    """
    found = _PATTERN.fullmatch(text)
    if found is None or not Decimal(found[1]):
        raise ConfigError(
            f"budget {text!r} is not understood: write a size such as 0.5MB or 300kB, or bit"
            " operations such as 2.5GBOPs"
        )
    number = Decimal(found[1]) * _PREFIXES[found[2].lower()]
    if found[3].lower() == "b":
        return Budget("bits", int(8 * number), text.strip())
    return Budget("BOPs", int(number), text.strip())


def show_cost(cost: int, unit: Unit) -> str:
    """A cost for people: ``134.9 kB``, ``2.52 GBOPs``; rounded up, so that it can be asked for."""
    number, name = (Decimal(cost) / 8, "B") if unit == "bits" else (Decimal(cost), "BOPs")
    prefix = max(
        (p for p in _PREFIXES if _PREFIXES[p] <= max(number, 1)), key=_PREFIXES.__getitem__
    )
    shown = (number / _PREFIXES[prefix]).quantize(Decimal("0.001"), ROUND_CEILING)
    return f"{shown.normalize():f} {prefix if prefix == 'k' else prefix.upper()}{name}"


def options_of(
    layers: Sequence[Layer],
    losses: Mapping[str, Mapping[int, float]],
    bits: Sequence[int],
    unit: Unit,
) -> list[list[Option]]:
    """Cost and loss of every choice of every layer; layers that are not free lose nothing more."""
    return [
        [
            (layer.cost(width, unit), losses[layer.path][width] if layer.free else 0.0)
            for width in layer.choices(bits)
        ]
        for layer in layers
    ]


def _least(layers: Sequence[Layer], bits: Sequence[int], unit: Unit) -> int:
    return sum(layer.cost(min(layer.choices(bits)), unit) for layer in layers)


def _positions(folded: fx.GraphModule, shape: tuple[int, int, int]) -> dict[str, int]:
    """How often every layer's kernel is applied to one image, over all its calls."""
    counts: dict[str, int] = {}

    def count(path: str, output: Tensor) -> None:
        layer = folded.get_submodule(path)
        assert isinstance(layer, QUANTIZABLE)  # noqa: S101 - only these are tapped
        counts[path] = counts.get(path, 0) + output.numel() // layer.weight.shape[0]

    layers = {path: folded.get_submodule(path) for path in quantizable_layers(folded)}
    with torch.no_grad(), tap_outputs(layers, count):
        folded(torch.zeros(1, *shape, device=device_of(folded)))
    return counts
